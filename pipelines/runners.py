"""Run the pipeline on this machine: kfp.local in a child process, which leads a group that ends as a whole.

The parent waits, shows progress from files, and takes everything down with it, however it ends itself: by Ctrl-C
through ``stop_group``, which leaves a training step the time for a checkpoint; by kill -9 through the kernel's
parent-death signal and each step's watch on its runner.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.lock import FileLock, Held
from components.process import die_with_parent, kill_own_group, stop_group, stop_own_group
from components.runner import STEPS_FILE
from components.settings import Settings
from model.data.artifact import write_atomic
from model.data.errors import InputError
from pipelines.profile import Profile

_JOB = "pipeline.json"
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class LocalRun:
    """What became of a pipeline run.

    Attributes:
        run_id: name of its directory below ``out/runs``.
        run_dir: holds log.txt, steps.jsonl, progress.json and, after a failure, failure.json.
        ok: every step finished.
        steps: one record per finished step, in the order of the line: {step, key, cached, seconds, outputs{name: {path,
            sha256}}}.
        failure: {step, error, log, resume} of the step that failed; None when ok.
        seconds: wall time.
    """

    run_id: str
    run_dir: Path
    ok: bool
    steps: list[dict[str, Any]]
    failure: dict[str, Any] | None
    seconds: float

    @property
    def cached_steps(self) -> list[str]:
        """The steps that came from the store."""
        return [record["step"] for record in self.steps if record["cached"]]


def run_local(
    profile: Profile,
    *,
    settings: Settings | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> LocalRun:
    """Run the pipeline ``train`` of ``profile`` with kfp.local, in subprocesses of the current interpreter.

    Call it from a thread that lives until it returns: the children are bound to it.

    Args:
        profile: what to run.
        settings: where to write; by default what the environment says.
        on_start: called once with the run's directory, before the first step (to start a progress display).

    Raises:
        InputError: another pipeline runs on the same output directory (names its process), or the profile
            cannot run here.
    """
    from pipelines.train import configs_of

    configs = configs_of(profile)
    settings = settings or Settings.from_environment()
    lock = FileLock(settings.out / "run.lock")
    try:
        lock.take()
    except Held as held:
        lock.close()
        raise InputError(
            f"process {held.pid} is running a pipeline in {settings.out}; wait for it, or set FOVEA_OUT"
        ) from None
    try:
        return _run(profile, configs, settings, lock, on_start)
    finally:
        lock.close()


def _run(
    profile: Profile,
    configs: dict[str, str],
    settings: Settings,
    lock: FileLock,
    on_start: Callable[[Path], None] | None,
) -> LocalRun:
    started = time.monotonic()
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run_dir = settings.out / "runs" / run_id
    (run_dir / "tmp").mkdir(parents=True)
    settings = replace(settings, profile=profile.name, run_dir=run_dir, run_id=run_id)
    write_atomic(run_dir / _JOB, json.dumps({"configs": configs, "root": str(settings.out / "kfp")}).encode())
    if on_start:
        on_start(run_dir)
    surroundings = {
        **settings.environment(),
        "TMPDIR": str(run_dir / "tmp"),  # KFP leaves a directory per step behind; here they go with the run
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a folder named model or components in the user's directory is not ours
    }
    with (run_dir / "log.txt").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.runners", str(run_dir), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **surroundings},
            start_new_session=True,
            # The child holds the lock too: it is free only when both are gone.
            pass_fds=[lock.fileno()],
        )
        try:
            while child.poll() is None:
                time.sleep(_POLL_SECONDS)
        finally:
            stop_group(child)
            shutil.rmtree(run_dir / "tmp", ignore_errors=True)
    failure = None if child.returncode == 0 else _failure(settings, run_dir, child.returncode)
    # Of two steps that wait for the same one, either may finish first.
    steps = sorted(read_steps(run_dir), key=lambda record: profile.line.index(record["step"]))
    return LocalRun(run_id, run_dir, failure is None, steps, failure, time.monotonic() - started)


def read_steps(run_dir: Path) -> list[dict[str, Any]]:
    """The steps of a run that are finished, in order."""
    path = run_dir / STEPS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _failure(settings: Settings, run_dir: Path, status: int) -> dict[str, Any]:
    """What the failing step wrote; where it could not write (killed, disk full), what can be said from outside."""
    path, log = run_dir / "failure.json", run_dir / "log.txt"
    if path.exists():
        return json.loads(path.read_text())
    step = None
    if (run_dir / "progress.json").exists():
        step = json.loads((run_dir / "progress.json").read_text()).get("step")
    if shutil.disk_usage(run_dir).free < 1 << 20:
        error = f"no space left on {settings.out}"
    elif step:
        error = "the step's process was killed"
    else:
        error = f"the pipeline's process ended with status {status}"
    resume = settings.resume or f"fovea run --profile {settings.profile}"
    return {"step": step, "error": error, "log": str(log), "resume": resume}


def main(run_dir: Path, parent: int) -> int:
    """The child: run the pipeline described in ``run_dir``. Returns the exit status."""
    signal.signal(signal.SIGTERM, stop_own_group)
    signal.signal(signal.SIGHUP, kill_own_group)
    die_with_parent(parent, signal.SIGHUP)
    os.environ["FOVEA_RUNNER_PID"] = str(os.getpid())
    job = json.loads((run_dir / _JOB).read_text())

    from kfp import local

    from pipelines.train import train_pipeline

    # workspace_root stays unset: kfp.local removes it after every run, whatever is in it.
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=job["root"], raise_on_error=True)
    try:
        train_pipeline(list(job["configs"]))(**job["configs"])
    except RuntimeError as error:  # kfp's word for a failed task; the step has said why
        print(f"fovea: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
