"""The pipeline ``train``: what it compiles to, and what a real kfp.local run of it does.

The runs go through a copy of the rooms in which the steps are toys and tracking writes nothing; KFP, the
components, the runner, the store and the processes are the real ones.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kfp.compiler import Compiler

from components.settings import Settings
from model.data.errors import InputError
from pipelines.profile import Profile, load_profile
from pipelines.runners import run_local
from pipelines.train import STEPS, build_train_pipeline, configs_of, train_pipeline

ROOT = Path(__file__).parents[2]
OUTPUTS = {
    "collect": ["corpus", "heldout", "tokenizer"],
    "curate": ["transcriptions", "questions"],
    "pretrain": ["model"],
    "sft": ["model"],
    "build_preferences": ["pairs", "rollouts"],
    "mpo": ["model"],
    "select_queries": ["queries"],
    "gspo": ["model"],
    "vico": ["model"],
    "route": ["model"],
    "evaluate": ["evaluation"],
    "gate": ["verdict"],
    "register": ["registration"],
    "deploy": ["deployment"],
}
MPO, GSPO, FLASH = ("build_preferences", "mpo"), ("select_queries", "gspo"), ("vico", "route")
TOY_STEP = """
    import hashlib, os, time
    from pathlib import Path
    from components.context import StepResult
    from model.data.artifact import payload_sha256
    from model.data.errors import InputError
    from model.training import stopping

    def run(config, *, context, **paths):
        behaviour = os.environ.get("TOY_{step}", "")
        if behaviour == "mistake":
            raise InputError("row 3: no answer")
        if behaviour == "hang":
            (Path(os.environ["FOVEA_OUT"]) / "hanging").write_text(str(os.getpid()))
            time.sleep(600)
        if behaviour == "train":
            with stopping.watch():
                (Path(os.environ["FOVEA_OUT"]) / "hanging").write_text(str(os.getpid()))
                while not stopping.stop_requested():
                    time.sleep(0.01)
                time.sleep(1)  # the optimiser step that is going on, and its checkpoint
                (context.state_dir / "checkpoint").touch()
                raise stopping.Stopped("stopped after step 3 of 9")
        text = config.model_dump_json() + "".join(payload_sha256(p) for n, p in sorted(paths.items()) if p.exists())
        for name in {outputs}:
            paths[name].mkdir()
            (paths[name] / "payload").write_text(hashlib.sha256(text.encode()).hexdigest())
        context.progress("working", 1, 1)
        return StepResult(numbers={{"loss": 0.5}}, values={{"passed": True}})
"""
TOY_TRACKING = "\n\ndef track(record, uri):\n    return {'run_id': 'r'}\n"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("micro")


@pytest.fixture(scope="module")
def short(profile) -> Profile:
    """The line without Cascade RL and Flash: what a run does is the same, and sooner over."""
    return profile.model_copy(update={"line": tuple(s for s in STEPS if s not in (*MPO, *GSPO, *FLASH))})


@pytest.fixture(scope="module")
def toy_rooms(tmp_path_factory) -> Path:
    """A copy of the rooms with toy steps."""
    copy = tmp_path_factory.mktemp("rooms")
    for room in ("model", "components", "pipelines", "requirements", "scoring", "planning"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for step, outputs in OUTPUTS.items():
        text = textwrap.dedent(TOY_STEP.format(step=step.upper(), outputs=outputs))
        (copy / "components" / step / "step.py").write_text(text)
    with (copy / "components/tracking.py").open("a") as stream:
        stream.write(TOY_TRACKING)
    return copy


@pytest.fixture
def settings(toy_rooms, tmp_path, monkeypatch) -> Settings:
    """Settings of a run whose child process finds the toys first."""
    monkeypatch.setenv("PYTHONPATH", str(toy_rooms))
    return replace(Settings.at(tmp_path / "out"), resume="fovea run --profile micro")


def of_kfp(step: str) -> str:
    """How KFP writes the name of a step."""
    return step.replace("_", "-")


def compiled(pipeline, tmp_path: Path) -> tuple[dict, dict]:
    """Pipeline spec and platform spec."""
    Compiler().compile(pipeline, str(tmp_path / "pipeline.yaml"))
    documents = list(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    return documents[0], documents[1] if len(documents) > 1 else {}


def test_kfp_caching_is_off_in_every_task_and_nothing_is_installed(profile, tmp_path):
    for pipeline in (train_pipeline(), build_train_pipeline(profile)):
        spec, _ = compiled(pipeline, tmp_path)
        tasks = spec["root"]["dag"]["tasks"]
        assert set(tasks) == set(map(of_kfp, STEPS))
        assert not any(task["cachingOptions"].get("enableCache") for task in tasks.values())
        for executor in spec["deploymentSpec"]["executors"].values():
            assert "pip install" not in " ".join(executor["container"]["command"])


def test_each_component_is_one_import_and_one_call_and_makes_what_its_step_makes(profile, tmp_path):
    spec, _ = compiled(train_pipeline(), tmp_path)
    for step, outputs in OUTPUTS.items():
        made = spec["components"][f"comp-{of_kfp(step)}"]["outputDefinitions"]["artifacts"]
        assert sorted(set(made) - {"metrics"}) == sorted(outputs)
        source = spec["deploymentSpec"]["executors"][f"exec-{of_kfp(step)}"]["container"]["command"][-1]
        assert source.count("from components.runner import run_step") == 1
        assert source.count("run_step(") == 1


def test_the_gate_gives_a_boolean_to_branch_on(tmp_path):
    spec, _ = compiled(train_pipeline(), tmp_path)
    parameters = spec["components"]["comp-gate"]["outputDefinitions"]["parameters"]
    assert parameters["passed"]["parameterType"] == "BOOLEAN"


def test_on_a_cluster_every_task_has_the_profiles_image_store_and_names(profile, tmp_path):
    spec, platform = compiled(build_train_pipeline(profile), tmp_path)
    for step in STEPS:
        container = spec["deploymentSpec"]["executors"][f"exec-{of_kfp(step)}"]["container"]
        assert container["image"].startswith("fovea-")
        env = {variable["name"]: variable["value"] for variable in container["env"]}
        assert env["FOVEA_OUT"] == profile.platform.store.path
        assert env["FOVEA_PROFILE"] == "micro"
        kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{of_kfp(step)}"]
        assert {field["name"] for field in kubernetes["fieldPathAsEnv"]} == {"KFP_RUN_ID"}
        assert kubernetes["pvcMount"][0]["mountPath"] == profile.platform.store.path
    baked = spec["root"]["inputDefinitions"]["parameters"]["sft"]["defaultValue"]
    assert json.loads(baked) == profile.sft.model_dump(mode="json")


def test_a_dollar_in_a_setting_is_no_placeholder(profile):
    digits = {**profile.collect.model_dump(exclude_none=True), "digits": None, "dataset": "/data/{{$.inputs}}"}
    changed = profile.model_copy(update={"collect": type(profile.collect)(**digits)})
    text = configs_of(changed)["collect"]
    assert "$" not in text
    assert json.loads(text)["dataset"] == "/data/{{$.inputs}}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (("collect", "curate"), "does not go without pretrain, evaluate, gate, register, deploy"),
        (("collect", "version", *STEPS[1:]), "has no version; it has collect"),
        ([step for step in STEPS if step != "vico"], "route works on what vico makes"),
        ([step for step in STEPS if step != "build_preferences"], "mpo works on what build_preferences makes"),
        ([step for step in STEPS if step not in ("mpo", *GSPO)], "build_preferences is for mpo and select_queries"),
        ([step for step in STEPS if step != "gspo"], "select_queries is for gspo"),
    ],
)
def test_a_line_that_this_pipeline_does_not_have_is_refused(profile, line, problem):
    with pytest.raises(InputError, match=f"micro: line: .*{problem}"):
        configs_of(profile.model_copy(update={"line": line}))


@pytest.mark.parametrize(
    ("left_out", "starts", "served"),
    [
        ((), {"mpo": "sft", "gspo": "mpo", "vico": "gspo", "route": "vico"}, "route"),
        (FLASH, {"mpo": "sft", "gspo": "mpo"}, "gspo"),
        ((*GSPO, *FLASH), {"mpo": "sft"}, "mpo"),
        (("mpo",), {"gspo": "sft", "vico": "gspo"}, "route"),
        ((*MPO, *GSPO, "route"), {"vico": "sft"}, "vico"),
        ((*MPO, *GSPO, *FLASH), {}, "sft"),
        (("sft", *MPO, *GSPO, *FLASH), {}, "pretrain"),
    ],
)
def test_a_step_starts_from_the_last_model_and_the_last_of_all_is_served(profile, tmp_path, left_out, starts, served):
    short = profile.model_copy(update={"line": tuple(step for step in STEPS if step not in left_out)})
    spec, _ = compiled(build_train_pipeline(short), tmp_path)
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == set(map(of_kfp, short.line))
    assert set(spec["root"]["inputDefinitions"]["parameters"]) == set(short.line)

    def source(step, name):
        return tasks[step]["inputs"]["artifacts"][name]["taskOutputArtifact"]["producerTask"]

    assert {step: source(step, "init") for step in starts} == starts
    assert {source(reader, "model") for reader in ("evaluate", "gate", "register", "deploy")} == {served}


def test_the_router_is_held_against_the_model_that_vico_began_with(tmp_path):
    spec, _ = compiled(train_pipeline(), tmp_path)
    tasks = spec["root"]["dag"]["tasks"]
    read = [tasks[step]["inputs"]["artifacts"][name] for step, name in (("route", "reference"), ("vico", "init"))]
    assert read[0] == read[1]


def test_a_run_finishes_and_a_second_one_takes_it_from_the_store(short, settings):
    started = []
    first = run_local(short, settings=settings, on_start=started.append)
    assert first.ok, (first.run_dir / "log.txt").read_text()
    assert started == [first.run_dir]
    assert [record["step"] for record in first.steps] == list(short.line)
    assert first.cached_steps == []
    second = run_local(short, settings=settings)
    assert second.ok
    assert second.cached_steps == ["collect", "curate", "pretrain", "sft", "evaluate"]
    hashes = [
        {record["step"]: [output["sha256"] for output in record["outputs"].values()] for record in run.steps}
        for run in (first, second)
    ]
    assert hashes[0] == hashes[1]
    for record in second.steps:
        for output in record["outputs"].values():
            lineage = json.loads((Path(output["path"]) / "lineage.json").read_text())
            assert output["sha256"] in lineage["outputs"].values()
    assert not (first.run_dir / "tmp").exists()

    changed = short.model_copy(update={"sft": short.sft.model_copy(update={"heldout_rows": 9})})
    third = run_local(changed, settings=settings)
    assert third.cached_steps == ["collect", "curate", "pretrain"]


def test_a_step_that_fails_names_itself_its_log_and_how_to_continue(profile, settings, monkeypatch):
    monkeypatch.setenv("TOY_CURATE", "mistake")
    run = run_local(profile, settings=settings)
    assert not run.ok
    assert run.failure == {
        "step": "curate",
        "error": "row 3: no answer",
        "log": str(run.run_dir / "log.txt"),
        "resume": "fovea run --profile micro",
    }
    log = (run.run_dir / "log.txt").read_text()
    assert "fovea: curate: row 3: no answer" in log
    assert "Traceback" not in log
    monkeypatch.setenv("TOY_CURATE", "")
    assert run_local(profile, settings=settings).cached_steps == ["collect"]


PARENT = """
import sys
from dataclasses import replace
from pathlib import Path
from components.settings import Settings
from pipelines.profile import load_profile
from pipelines.runners import run_local
from model.data.errors import InputError
try:
    run = run_local(load_profile("micro"), settings=Settings.at(Path(sys.argv[1])))
    print(run.ok, run.failure)
except InputError as error:
    sys.exit(f"refused: {error}")
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


def parent(settings: Settings) -> subprocess.Popen:
    """A process that runs the line, in a session of its own, as a terminal's command would be."""
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(settings.out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def hanging_step(settings: Settings) -> int:
    path, deadline = settings.out / "hanging", time.monotonic() + 120
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, "the step never came"
        time.sleep(0.05)
    return int(path.read_text())


def processes_of(settings: Settings) -> list[str]:
    """Command lines of living processes that know this output directory."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            environment = (process / "environ").read_bytes() if process.name.isdigit() else b""
            command = (process / "cmdline").read_bytes() if str(settings.out).encode() in environment else b""
        except OSError:
            continue
        if command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace")[:200])
    return found


def gone(settings: Settings) -> bool:
    deadline = time.monotonic() + 30
    while processes_of(settings) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes_of(settings) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_when_the_command_ends_no_child_is_left(settings, monkeypatch, number):
    monkeypatch.setenv("TOY_CURATE", "hang")
    command = parent(settings)
    hanging_step(settings)
    assert len(processes_of(settings)) >= 2
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert command.returncode != 0
    assert gone(settings), processes_of(settings)
    if number == signal.SIGINT:
        assert errors.strip() == "interrupted"


@pytest.mark.parametrize("whom", ["command", "runner"])
def test_a_training_step_that_is_asked_to_stop_writes_its_checkpoint_first(settings, monkeypatch, whom):
    monkeypatch.setenv("TOY_CURATE", "train")
    command = parent(settings)
    step = hanging_step(settings)
    if whom == "command":
        command.send_signal(signal.SIGINT)
    else:
        os.kill(os.getpgid(step), signal.SIGTERM)
    out, errors = command.communicate(timeout=60)
    assert len(list(settings.state_root.glob("*/checkpoint"))) == 1
    assert gone(settings), processes_of(settings)
    run_dir = max((settings.out / "runs").iterdir())
    assert json.loads((run_dir / "failure.json").read_text())["error"] == "stopped after step 3 of 9"
    assert "fovea: curate: stopped after step 3 of 9; to continue: " in (run_dir / "log.txt").read_text()
    if whom == "command":
        assert errors.strip() == "interrupted"
    else:
        assert out.startswith("False {'step': 'curate', 'error': 'stopped after step 3 of 9'")


def test_a_step_does_not_outlive_the_runner_and_a_second_run_is_refused_meanwhile(settings, monkeypatch):
    monkeypatch.setenv("TOY_CURATE", "hang")
    command = parent(settings)
    step = hanging_step(settings)
    second = parent(settings)
    _, refusal = second.communicate(timeout=60)
    assert second.returncode == 1
    assert refusal.strip().splitlines() == [
        f"refused: process {command.pid} is running a pipeline in {settings.out}; wait for it, or set FOVEA_OUT"
    ]
    os.kill(os.getpgid(step), signal.SIGKILL)  # the runner leads the group; only it gets the signal
    out, _ = command.communicate(timeout=60)
    assert out.startswith("False {'step': 'curate'")
    assert gone(settings), processes_of(settings)
