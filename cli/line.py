"""Run the line as the command line does: progress, outputs under ``out/line``, dvc.lock, and what was found."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cli import versioning
from cli.progress import Mode, ProgressView, read_update
from components.lock import FileLock, Held
from components.settings import Settings
from model.data.errors import InputError
from pipelines.profile import PROFILES, Profile, load_params
from pipelines.runners import LocalRun, run_local
from pipelines.strict_yaml import read_yaml

PARAMS = "params.yaml"


@dataclass(frozen=True)
class Line:
    """A finished pipeline run, and what was made of it.

    Attributes:
        run: the pipeline run.
        lineage: what each finished step wrote beside its outputs, by step.
        lock_sha256: of dvc.lock; None where it was not written.
        why_no_lock: the reason, in that case.
    """

    run: LocalRun
    lineage: dict[str, dict[str, Any]]
    lock_sha256: str | None
    why_no_lock: str

    def output(self, step: str, name: str) -> Path:
        """Directory of one output."""
        record = next(record for record in self.run.steps if record["step"] == step)
        return Path(record["outputs"][name]["path"])


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Be the only command that writes ``out/line``, dvc.lock and ``out/demo``.

    Raises:
        InputError: another one is at work; names its process.
    """
    lock = FileLock(out / "command.lock")
    try:
        lock.take()
        yield
    except Held as held:
        raise InputError(
            f"process {held.pid} is running the line in {out}; wait for it, stop it, or set FOVEA_OUT to another place"
        ) from None
    finally:
        lock.close()


def run_line(profile: Profile, settings: Settings, mode: Mode, root: Path) -> Line:
    """Run the pipeline; if every step finished, put its outputs under ``out/line`` and commit them to DVC.

    Args:
        profile: what to run.
        settings: where to write; ``resume`` is the command shown after a failure.
        mode: how progress is shown.
        root: directory of dvc.yaml and params.yaml, if there are any.
    """
    run = _run_watched(profile, settings, mode)
    lineage = {record["step"]: _lineage(record) for record in run.steps}
    if not run.ok:
        return Line(run, lineage, None, "the line did not finish")
    outputs = {
        record["step"]: {name: Path(output["path"]) for name, output in record["outputs"].items()}
        for record in run.steps
    }
    versioning.materialise(outputs, settings.out / "line")
    why = why_not_commit(profile, settings, root)
    return Line(run, lineage, None if why else versioning.commit(root), why)


def _run_watched(profile: Profile, settings: Settings, mode: Mode) -> LocalRun:
    """Run the pipeline under a progress view. Ctrl-C says where it hit: the step, and the log."""
    watched: list[Path] = []
    with ExitStack() as stack:

        def show(run_dir: Path) -> None:
            watched.append(run_dir)
            stack.enter_context(ProgressView(run_dir, mode))

        try:
            return run_local(profile, settings=settings, on_start=show)
        except KeyboardInterrupt as error:
            if not watched:
                raise
            update = read_update(watched[0])
            step = f"in {update.step}; " if update else ""
            raise type(error)(f"{step}log: {watched[0] / 'log.txt'}") from None


def why_not_commit(profile: Profile, settings: Settings, root: Path) -> str:
    """Why dvc.lock would not describe this run; empty if it would."""
    if not (root / "dvc.yaml").is_file() or not (root / PARAMS).is_file():
        return f"there is no dvc.yaml with {PARAMS} in {root}"
    if settings.out != (root / "out").absolute():
        return f"the outputs are in {settings.out}, and dvc.yaml's in out"
    if profile != load_params(root / PARAMS):
        return f"{PARAMS} describes another run than this"
    file = PROFILES / f"{profile.name}.yaml"
    if file.is_file() and "extends" in read_yaml(file, str(file)):
        return f"profile {profile.name} extends another, and DVC reads one file"
    described = read_yaml(root / "dvc.yaml", str(root / "dvc.yaml"))["stages"]
    if left_out := [step for step in described if step not in profile.line]:
        return f"dvc.yaml describes the full line, and profile {profile.name} leaves out {', '.join(left_out)}"
    return ""


def _lineage(record: dict[str, Any]) -> dict[str, Any]:
    """The lineage that lies beside every output of a step."""
    output = next(iter(record["outputs"].values()))
    return json.loads((Path(output["path"]) / "lineage.json").read_text())


def settings_for(resume: str) -> Settings:
    """This process's settings, with the command that continues after a failure."""
    settings = Settings.from_environment()
    return replace(settings, resume=settings.resume or resume)
