"""dvc.yaml on a copy of the repository, with a stand-in for ``fovea stage``: what re-runs, what is pushed."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cli.versioning import commit, materialise
from components.code_version import import_closure
from model.data.artifact import file_sha256
from model.data.errors import InputError

REPOSITORY = Path(__file__).parents[1]
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
ALWAYS = {"gate", "register", "deploy"}
# Writes each output from its inputs and its section, and notes that it ran. It stands for `fovea stage`, whose own
# tests are elsewhere: here the question is what DVC decides to run.
STAND_IN = """#!{python}
import json, pathlib, sys, yaml
step, rest = sys.argv[2], sys.argv[3:]
pairs = [pair.partition("=")[::2] for pair in rest[1::2]]
named = list(zip(rest[::2], pairs))
params = yaml.safe_load(open("params.yaml"))
profile = yaml.safe_load(open(f"pipelines/profiles/{{params['profile']}}.yaml"))
text = json.dumps([step, profile.get(step), params["overrides"][step]])
for kind, (name, path) in named:
    if kind == "--input":
        text += (pathlib.Path(path) / "payload").read_text()
for kind, (name, path) in named:
    if kind == "--output":
        pathlib.Path(path).mkdir(parents=True)
        (pathlib.Path(path) / "payload").write_text(str(hash(text)) + name)
with open("ran.txt", "a") as log:
    log.write(step + "\\n")
"""


# What DVC needs of the repository.
COPIED = (
    *("components", "model", "scoring", "requirements", "pipelines/profiles", "dvc.yaml", "params.yaml"),
    *(".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"),
)


class Copy:
    """A copy of the repository, with the stand-in first on PATH."""

    def __init__(self, root: Path):
        self.root = root

    @classmethod
    def of_repository(cls, root):
        for name in COPIED:
            source, target = REPOSITORY / name, root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        fovea = root / "bin" / "fovea"
        fovea.parent.mkdir()
        fovea.write_text(STAND_IN.format(python=sys.executable))
        fovea.chmod(fovea.stat().st_mode | stat.S_IXUSR)
        return cls(root)

    def dvc(self, *arguments):
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONHASHSEED": "0", "DVC_NO_ANALYTICS": "1"}
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self):
        """The steps that ``dvc repro`` ran, in order."""
        (self.root / "ran.txt").write_text("")
        self.dvc("repro", "--quiet")
        return (self.root / "ran.txt").read_text().split()

    def edit(self, name, old, new):
        path = self.root / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    made = Copy.of_repository(tmp_path_factory.mktemp("reproduced") / "repository")
    assert made.repro() == list(STAGES)
    return made


@pytest.fixture
def copy(reproduced, tmp_path):
    return Copy(shutil.copytree(reproduced.root, tmp_path / "repository"))


def test_repro_runs_what_changed_and_what_follows_and_nothing_else(copy):
    (copy.root / "README.md").write_text("edited")
    (copy.root / "components" / "sft" / "__pycache__").mkdir()
    (copy.root / "components" / "sft" / "__pycache__" / "step.pyc").write_text("compiled")
    assert set(copy.repro()) == ALWAYS
    copy.edit("params.yaml", "sft: {}", "sft: {training: {learning_rate: 1e-5}}")
    changed = json.loads(copy.dvc("status", "--json"))
    assert set(changed) - ALWAYS == {"sft"}
    assert copy.repro() == list(STAGES)[list(STAGES).index("sft") :]
    copy.edit("model/objectives/next_token.py", "\n", "\n# edited\n")
    assert copy.repro()[:2] == ["pretrain", "sft"]


def test_another_profile_takes_its_own_sections(copy):
    copy.edit("params.yaml", "profile: tiny", "profile: micro")
    assert copy.repro() == list(STAGES)


def test_outputs_go_to_a_directory_remote_and_come_back(copy, tmp_path):
    lock = (copy.root / "dvc.lock").read_bytes()
    payload = (copy.root / "out/line/sft/model/payload").read_text()
    copy.dvc("remote", "add", "--default", "--local", "shelf", str(tmp_path / "shelf"))
    copy.dvc("push")
    shutil.rmtree(copy.root / "out")
    shutil.rmtree(copy.root / ".dvc" / "cache")
    copy.dvc("pull", "--allow-missing")
    assert (copy.root / "out/line/sft/model/payload").read_text() == payload
    assert (copy.root / "dvc.lock").read_bytes() == lock


def test_git_sees_nothing_of_what_dvc_writes(copy):
    subprocess.run(["git", "init", "--quiet", str(copy.root)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(copy.root), "status", "--porcelain", "--untracked-files=all"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (copy.root / "dvc.lock").exists()
    written = [line for line in listed.splitlines() if "dvc.lock" in line or " out/" in line or "/cache/" in line]
    assert written == []


def test_commit_describes_outputs_that_a_pipeline_made(copy):
    by_dvc = (copy.root / "dvc.lock").read_bytes()
    store = copy.root / "store"
    shutil.copytree(copy.root / "out" / "line", store)
    shutil.rmtree(copy.root / "out")
    (copy.root / "dvc.lock").unlink()
    outputs = {step.name: {output.name: output for output in step.iterdir()} for step in store.iterdir()}
    materialise(outputs, copy.root / "out" / "line")
    assert commit(copy.root) == file_sha256(copy.root / "dvc.lock")
    assert (copy.root / "dvc.lock").read_bytes() == by_dvc


def test_a_refusing_dvc_gives_one_line(copy):
    shutil.rmtree(copy.root / "out")
    with pytest.raises(InputError, match=r"^dvc commit: .*") as caught:
        commit(copy.root)
    assert "\n" not in str(caught.value)


def test_materialise_replaces_what_changed_and_leaves_the_rest(tmp_path):
    store, line = tmp_path / "store", tmp_path / "line"
    for name in ("a", "b"):
        (store / name).mkdir(parents=True)
        (store / name / "payload").write_text(name)
    outputs = {"step": {"a": store / "a", "b": store / "b"}}
    materialise(outputs, line)
    untouched = (line / "step" / "a").stat().st_ino
    (store / "c").mkdir()
    (store / "c" / "payload").write_text("c")
    materialise({"step": {"a": store / "a", "b": store / "c"}}, line)
    assert (line / "step" / "a").stat().st_ino == untouched
    assert (line / "step" / "b" / "payload").read_text() == "c"


@pytest.mark.parametrize("step", STAGES)
def test_the_command_names_the_dependencies_and_outputs_of_its_stage(step):
    stage, words = STAGES[step], shlex.split(STAGES[step]["cmd"])
    assert words[:3] == ["fovea", "stage", step]
    given = [(kind, pair.partition("=")[2]) for kind, pair in zip(words[3::2], words[4::2], strict=True)]
    inputs = [path for kind, path in given if kind == "--input"]
    assert inputs == [dep for dep in stage["deps"] if dep.startswith("out/")]
    outs = [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]
    assert [path for kind, path in given if kind == "--output"] == outs
    assert stage.get("always_changed", False) == (step in ALWAYS)


def test_the_graph_is_the_pipelines_graph(tmp_path):
    from kfp.compiler import Compiler

    from pipelines.train import train_pipeline

    Compiler().compile(train_pipeline(), str(tmp_path / "pipeline.yaml"))
    tasks = yaml.safe_load((tmp_path / "pipeline.yaml").read_text())["root"]["dag"]["tasks"]
    tasks = {task.replace("-", "_"): description for task, description in tasks.items()}  # KFP's names of tasks
    by_kfp = {
        (
            step,
            name,
            source["taskOutputArtifact"]["producerTask"].replace("-", "_"),
            source["taskOutputArtifact"]["outputArtifactKey"],
        )
        for step, task in tasks.items()
        for name, source in task["inputs"].get("artifacts", {}).items()
    }
    by_dvc = set()
    for step, stage in STAGES.items():
        words = shlex.split(stage["cmd"])[3:]
        for kind, pair in zip(words[::2], words[1::2], strict=True):
            name, _, path = pair.partition("=")
            if kind == "--input":
                producer, output = Path(path).parts[-2:]
                by_dvc.add((step, name, producer, output))
    assert set(tasks) == set(STAGES)
    assert by_dvc == by_kfp


@pytest.mark.parametrize("profile", ["tiny", "micro", "small"])
def test_a_profile_that_dvc_reads_stands_alone_and_spells_every_section(profile):
    written = yaml.safe_load((REPOSITORY / "pipelines" / "profiles" / f"{profile}.yaml").read_text())
    assert "extends" not in written
    assert set(STAGES) <= set(written)


@pytest.mark.parametrize("step", STAGES)
def test_the_dependencies_of_a_stage_are_the_code_it_imports(step):
    """Package files and what every stage imports aside: the two contracts, and what they ask of the machine."""
    shared = {"components/context.py", "model/config.py", "model/machine.py"}
    code = [REPOSITORY / dep for dep in STAGES[step]["deps"] if not dep.startswith(("out/", "requirements/"))]
    closure = [
        path
        for path in import_closure(REPOSITORY / "components" / step / "step.py", REPOSITORY)
        if path.name != "__init__.py" and path.relative_to(REPOSITORY).as_posix() not in shared
    ]
    uncovered = [path for path in closure if not any(path.is_relative_to(dep) for dep in code)]
    idle = [dep for dep in code if not any(path.is_relative_to(dep) for path in closure)]
    assert (uncovered, idle) == ([], [])
