"""How a step's failure is told: one line for a user's mistake, a traceback for a bug, a file for the pipeline run."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from components import process
from components.settings import Settings
from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.training.stopping import STOPPED_STATUS, Stopped, stop_answered

_FULL_BELOW_BYTES = 1 << 20
_FULL = ("No space left on device", "Disk quota exceeded", "disk is full")


@contextmanager
def reported(step: str, settings: Settings) -> Iterator[None]:
    """Run a step's body as a task of its own: it dies with its runner, and its failure is written down.

    Raises:
        SystemExit: with status 1, after a user's mistake or a full disk; with 143, after SIGTERM.
    """
    if settings.runner_pid:
        # The parent may be a shell that KFP starts. A signal to the group ends it before a checkpoint is written, so
        # its death is no more than a request; the runner's is final.
        process.die_with_parent(os.getppid(), signal.SIGTERM)
        process.die_with(settings.runner_pid)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
    try:
        yield
    except Stopped as stopped:
        _write(step, str(stopped), settings)
        print(f"fovea: {step}: {stopped}; to continue: {resume_command(settings)}", file=sys.stderr, flush=True)
        raise SystemExit(STOPPED_STATUS) from None
    except Exception as error:
        disk = full_disk(error, settings)
        if disk is None and not isinstance(error, InputError):
            _write(step, f"{type(error).__name__}: {error}", settings)
            raise
        message = f"no space left on {disk}" if disk else str(error)
        _write(step, message, settings)
        for line in message.splitlines():
            print(f"fovea: {step}: {line}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def _stop(number: int, _frame: FrameType | None) -> None:
    """End at once: whatever is half done is under a temporary name or in the state directory."""
    if stop_answered():
        return  # the same request, repeated while this process writes down that it has stopped
    os.write(2, f"fovea: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def full_disk(error: BaseException, settings: Settings) -> str | None:
    """The path that had no space left, if that is what ``error`` says; libraries wrap it in their own exceptions."""
    link: BaseException | None = error
    while link is not None:
        text = str(link)
        if any(words in text for words in _FULL):
            named = getattr(link, "filename", None)
            return str(named) if named else str(_fullest(settings))
        link = link.__cause__ or link.__context__
    return None


def _fullest(settings: Settings) -> Path:
    """The first of our directories on a full disk; the output directory when none looks full any more."""
    for path in (settings.store, settings.state_root, settings.out, Path(os.environ.get("TMPDIR", "/tmp"))):
        existing = next(p for p in (path, *path.parents) if p.exists())
        if shutil.disk_usage(existing).free < _FULL_BELOW_BYTES:
            return path
    return settings.out


def resume_command(settings: Settings) -> str:
    """The command that continues after a failure."""
    return settings.resume or f"fovea run --profile {settings.profile or 'PROFILE'}"


def _write(step: str, error: str, settings: Settings) -> None:
    if settings.run_dir is None:
        return
    log, resume = str(settings.run_dir / "log.txt"), resume_command(settings)
    failure = {"step": step, "error": error, "log": log, "resume": resume}
    try:
        write_atomic(settings.run_dir / "failure.json", json.dumps(failure).encode())
    except OSError as trouble:  # on a full disk the line on stderr has to do
        print(f"fovea: {settings.run_dir / 'failure.json'}: {trouble}", file=sys.stderr)
