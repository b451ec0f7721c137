"""run_step: what is done is not done again, what was interrupted continues, and errors are said in one line.

The steps are toys in a directory of their own, found as if they lay in ``components``; tracking is stood in for
where it is not the subject (tests/components/test_tracking.py has it).
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import components
from components import provenance, runner
from components.settings import Settings
from model.data.artifact import payload_sha256
from model.data.errors import InputError

CONFIG = """
from pathlib import Path
from pydantic import Field
from model.config import Precision, Section

class Inner(Section):
    precision: Precision = "float32"

class ToyConfig(Section):
    value: int = Field(gt=0)
    behaviour: str = ""
    file: Path | None = None
    precision: Precision = "float32"
    inner: Inner | None = None
"""
STEP = """
import os, sys, time
from pathlib import Path
from components.context import FamilyScore, StepResult
from model.data.errors import InputError
from model.training.stopping import Stopped
from components.toy.work import LOSS

def run(config, *, result: Path, context, source: Path | None = None):
    with open(os.environ["TOY_CALLS"], "a") as calls:
        calls.write(f"{os.getpid()}\\n")
    if config.behaviour == "mistake":
        raise InputError("row 3: no answer")
    if config.behaviour == "bug":
        raise KeyError("surprise")
    if config.behaviour == "full":
        raise OSError(28, "No space left on device", "shard-00003.parquet")
    if config.behaviour == "stopped":
        raise Stopped("sft stopped after step 2 of 4; a checkpoint is written")
    if config.behaviour == "forgets":
        return StepResult()
    saved = context.state_dir / "steps"
    done = int(saved.read_text()) if saved.exists() else 0
    while done < 4:
        context.progress("counting", done, 4)
        done += 1
        context.metrics({"stage": "counting", "step": done})
        saved.write_text(str(done))
        if config.behaviour == "slow" and done == 2:
            Path(os.environ["TOY_CALLS"] + ".half").touch()
            time.sleep(60 if os.environ.get("TOY_HANGS") else 1)
    result.mkdir()
    (result / "value.txt").write_text(str(config.value * LOSS))
    loss = float("nan") if config.behaviour == "diverges" else 0.5
    return StepResult(
        numbers={"loss": loss}, history=[{"step": 1, "loss": 1.0}],
        heldout={"read": FamilyScore(0.5, 0.4, 0.6, 10, 0.1)}, values={"torch": "torch" in sys.modules},
    )
"""
DRIVER = """
import sys
from pathlib import Path
import components
from components import runner
root = Path(sys.argv[1])
components.__path__.append(str(root / "components"))
runner.REPOSITORY = root
runner.track = lambda record, uri: {"run_id": "r"}
runner.run_step("toy", sys.argv[2], {}, {"result": sys.argv[3]})
print("loaded", sorted({"torch", "mlflow", "kfp", "components.toy.step"} & sys.modules.keys()))
"""


@pytest.fixture
def toys(tmp_path, monkeypatch) -> Path:
    """A repository with one step, its environment, and a file of calls."""
    folder = tmp_path / "repository" / "components" / "toy"
    folder.mkdir(parents=True)
    for name, text in {"__init__": "", "config": CONFIG, "step": STEP, "work": "LOSS = 1\n"}.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.setattr(components, "__path__", [*components.__path__, str(folder.parent)])
    monkeypatch.setattr(runner, "REPOSITORY", tmp_path / "repository")
    monkeypatch.setattr(runner, "track", lambda record, uri: {"run_id": "r"})
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a source edited within a second would stay as it was
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name, value in {
        "FOVEA_OUT": tmp_path / "out",
        "FOVEA_RUN_DIR": run_dir,
        "TOY_CALLS": tmp_path / "calls",
    }.items():
        monkeypatch.setenv(name, str(value))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("components.toy")]:
        del sys.modules[name]


def config(**values) -> str:
    return json.dumps({"value": 7} | values)


def run(toys: Path, where: str = "wanted", inputs: dict | None = None, **values):
    for name in [name for name in sys.modules if name.startswith("components.toy")]:
        del sys.modules[name]
    return runner.run_step("toy", config(**values), inputs or {}, {"result": toys / where})


def calls(toys: Path) -> int:
    return len((toys / "calls").read_text().split()) if (toys / "calls").exists() else 0


def lineage(toys: Path, where: str = "wanted") -> dict:
    return json.loads((toys / where / "lineage.json").read_text())


def artifact(path: Path, text: str = "rows") -> Path:
    path.mkdir(exist_ok=True)
    (path / "shard").write_text(text)
    return path


def test_a_second_run_takes_the_outputs_and_the_result_from_the_store(toys):
    first, second = run(toys, "one"), run(toys, "two")
    assert calls(toys) == 1
    assert second == first
    assert (toys / "two" / "value.txt").read_text() == "7"
    notes = [json.loads(line) for line in (toys / "run" / "steps.jsonl").read_text().splitlines()]
    assert [note["cached"] for note in notes] == [False, True]
    assert Path(notes[1]["outputs"]["result"]["path"]) == toys / "out/store" / notes[1]["key"] / "result"


def test_the_lineage_says_where_an_output_comes_from(toys):
    source = artifact(toys / "source")
    run(toys, inputs={"source": source})
    found = lineage(toys)
    assert found["inputs"] == {"source": payload_sha256(source)}
    assert found["outputs"] == {"result": payload_sha256(toys / "wanted")}
    assert found["config"] == {"value": 7, "behaviour": "", "file": None, "precision": "float32", "inner": None}
    assert found["heldout"]["read"]["constant"] == 0.1
    assert found["environment"]["threads"] > 0
    assert len(found["git_sha"]) >= 4


def test_the_payload_is_the_same_in_another_store_at_another_time(toys, monkeypatch):
    run(toys, "one")
    monkeypatch.setenv("FOVEA_OUT", str(toys / "elsewhere"))
    run(toys, "two")
    assert calls(toys) == 2
    assert payload_sha256(toys / "one") == payload_sha256(toys / "two")
    assert lineage(toys, "one")["key"] == lineage(toys, "two")["key"]


def test_another_value_input_code_or_lock_runs_again(toys, monkeypatch):
    source = artifact(toys / "source")
    run(toys, inputs={"source": source})
    run(toys, inputs={"source": source}, value=8)
    assert calls(toys) == 2
    run(toys, inputs={"source": artifact(source, "other rows")})
    assert calls(toys) == 3
    (toys / "repository/components/toy/work.py").write_text("LOSS = 2\n")
    run(toys, inputs={"source": source})
    assert calls(toys) == 4
    assert (toys / "wanted/value.txt").read_text() == "14"
    monkeypatch.setattr(provenance, "lock_sha256", lambda: "another lock")
    run(toys, inputs={"source": source})
    assert calls(toys) == 5


def test_what_lies_beside_an_input_runs_nothing_again(toys):
    source = artifact(toys / "source")
    run(toys, inputs={"source": source})
    (source / "lineage.json").write_text("{}")
    (source / "manifest.json").write_text("{}")
    (toys / "repository/README.md").write_text("edited")
    run(toys, inputs={"source": source})
    assert calls(toys) == 1


def test_a_file_that_the_configuration_names_counts_by_its_contents(toys):
    file = toys / "own.parquet"
    file.write_text("mine")
    run(toys, file=str(file))
    run(toys, file=str(file.rename(toys / "moved.parquet")))
    assert calls(toys) == 1
    (toys / "moved.parquet").write_text("edited")
    run(toys, file=str(toys / "moved.parquet"))
    assert calls(toys) == 2
    (toys / "moved.parquet").unlink()
    run(toys, file=str(toys / "moved.parquet"))
    assert calls(toys) == 3, "a file that is gone is the step's to miss"


def said(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("fovea:")]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"behaviour": "mistake"}, "fovea: toy: row 3: no answer"),
        ({"behaviour": "full"}, "fovea: toy: no space left on shard-00003.parquet"),
        ({"value": -1}, "fovea: toy: toy.value: Input should be greater than 0"),
        ({"valu": 1}, "fovea: toy: toy.valu: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_one_line_and_a_failure_file(toys, capsys, monkeypatch, values, line):
    monkeypatch.setenv("FOVEA_RESUME", "fovea run")
    with pytest.raises(SystemExit) as exit_:
        run(toys, **values)
    assert exit_.value.code == 1
    assert said(capsys) == [line]
    failure = json.loads((toys / "run/failure.json").read_text())
    assert failure["step"] == "toy"
    assert failure["resume"] == "fovea run"
    assert failure["log"].endswith("log.txt")
    assert failure["error"] in line
    assert not (toys / "wanted").exists()


def test_a_stopped_step_has_a_status_of_its_own_and_names_the_command_that_continues(toys, capsys, monkeypatch):
    monkeypatch.setenv("FOVEA_RESUME", "fovea run")
    with pytest.raises(SystemExit) as exit_:
        run(toys, behaviour="stopped")
    assert exit_.value.code == 143
    line = "sft stopped after step 2 of 4; a checkpoint is written"
    assert said(capsys) == [f"fovea: toy: {line}; to continue: fovea run"]
    assert json.loads((toys / "run/failure.json").read_text())["error"] == line
    assert len(list((toys / "out/state").iterdir())) == 1


def test_records_of_steps_lie_beside_the_run_and_in_no_payload(toys):
    run(toys)
    records = [json.loads(line) for line in (toys / "run/training.jsonl").read_text().splitlines()]
    assert [(record["task"], record["stage"], record["step"]) for record in records] == [
        ("toy", "counting", step) for step in range(1, 5)
    ]
    assert "training.jsonl" not in {path.name for path in (toys / "out/store").rglob("*")}
    assert "time" not in json.dumps(lineage(toys)["history"])


def test_every_wrong_field_has_its_line(toys, capsys):
    with pytest.raises(SystemExit):
        run(toys, value=0, behaviour=3)
    assert [line.split(":")[2].strip() for line in said(capsys)] == ["toy.value", "toy.behaviour"]


def test_a_number_that_is_not_finite_is_refused(toys, capsys):
    with pytest.raises(SystemExit):
        run(toys, behaviour="diverges")
    assert "not finite" in said(capsys)[0]


def test_a_bug_keeps_its_traceback_and_is_written_down(toys):
    with pytest.raises(KeyError, match="surprise"):
        run(toys, behaviour="bug")
    assert json.loads((toys / "run/failure.json").read_text())["error"] == "KeyError: 'surprise'"
    with pytest.raises(RuntimeError, match="did not make its output result"):
        run(toys, behaviour="forgets")


@pytest.mark.parametrize(
    ("step", "line"), [("nothing", "no step is named 'nothing'"), ("quantize", "step quantize is not built yet")]
)
def test_an_unknown_step_and_one_that_is_not_built_are_refused(toys, step, line):
    with pytest.raises(InputError, match=line):
        runner.execute_step(step, "{}", {}, {}, Settings.at(toys / "out"))


def test_a_missing_input_is_named(toys, capsys):
    with pytest.raises(SystemExit):
        run(toys, inputs={"source": toys / "nowhere"})
    assert said(capsys) == [f"fovea: toy: input source: {toys / 'nowhere'}: no such artifact, or an empty one"]


def test_a_tampered_store_entry_is_computed_again(toys, capsys):
    run(toys)
    stored = toys / "out/store" / lineage(toys)["key"] / "result/value.txt"
    stored.unlink()
    stored.write_text("666")
    run(toys)
    assert calls(toys) == 2
    assert (toys / "wanted/value.txt").read_text() == "7"
    assert "damaged" in capsys.readouterr().err


def test_steps_that_look_at_the_world_always_run(toys, monkeypatch):
    monkeypatch.setattr(runner, "ALWAYS_RUN", {"toy"})
    run(toys)
    run(toys)
    assert calls(toys) == 2
    assert (toys / "wanted/value.txt").read_text() == "7"
    assert [path.name for path in (toys / "out/store").iterdir() if not path.name.startswith(".")] == []
    assert list((toys / "out/store/.work").iterdir()) == []


def test_when_tracking_fails_the_work_is_kept(toys, monkeypatch, capsys):
    def refuse(record, uri):
        raise InputError("the tracking server says no")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "track", refuse)
        with pytest.raises(SystemExit):
            run(toys)
    assert said(capsys) == [
        "fovea: toy: the tracking server says no; the step's outputs are kept, and the same command continues"
    ]
    run(toys)
    assert calls(toys) == 1
    assert (toys / "wanted/value.txt").read_text() == "7"


def test_state_is_gone_when_the_output_is_complete(toys):
    run(toys)
    assert list((toys / "out/state").iterdir()) == []


def spawn(toys: Path, where: str, *, hangs: bool = False) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(toys / "repository"), config(behaviour="slow"), str(toys / where)],
        env={**os.environ, **({"TOY_HANGS": "1"} if hangs else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_step_leaves_its_state_and_the_same_call_continues(toys, number):
    child = spawn(toys, "wanted", hangs=True)
    wait_for(toys / "calls.half")
    child.send_signal(number)
    child.communicate(timeout=60)
    assert not (toys / "wanted").exists()
    (state,) = (toys / "out/state").iterdir()
    assert (state / "steps").read_text() == "2"
    again = spawn(toys, "wanted")  # steps 3 and 4 only, so it does not pause at 2 any more
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert (toys / "wanted/value.txt").read_text() == "7"
    assert list((toys / "out/state").iterdir()) == []


def test_two_at_once_compute_once_and_a_cached_step_loads_nothing_heavy(toys):
    children = [spawn(toys, where) for where in ("one", "two")]
    outcomes = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outcomes
    assert calls(toys) == 1
    assert sum("is computing the same; waiting for it" in errors for _, errors in outcomes) == 1
    assert (toys / "one/value.txt").read_text() == (toys / "two/value.txt").read_text() == "7"
    assert sorted(out.strip() for out, _ in outcomes) == ["loaded ['components.toy.step']", "loaded []"]


def test_a_full_disk_is_one_line(toys):
    disk = toys / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=48k,nr_inodes=64 tmpfs {disk} && exec "$@"'
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("NOT CHECKED ON A FULL DISK: no private mounts on this machine")
    writes = STEP.replace('(result / "value.txt").write_text', '(result / "value.txt").write_text("x" * 10**6);str')
    (toys / "repository/components/toy/step.py").write_text(writes)
    done = subprocess.run(
        [*isolated, sys.executable, "-c", DRIVER, str(toys / "repository"), config(), str(disk / "wanted")],
        env={**os.environ, "FOVEA_OUT": str(disk / "out")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"fovea: toy: no space left on {disk}")


@pytest.mark.parametrize("fast", [True, False])
def test_a_precision_that_this_processor_is_slow_in_is_said(toys, capsys, monkeypatch, fast):
    monkeypatch.setattr(runner, "computes_bfloat16", lambda: fast)
    run(toys, precision="bfloat16", inner={"precision": "bfloat16"})
    said = capsys.readouterr().err
    assert ("toy.precision: bfloat16 takes" in said) is not fast
    assert ("toy.inner.precision: bfloat16 takes" in said) is not fast
    run(toys, value=8)
    assert "bfloat16" not in capsys.readouterr().err
