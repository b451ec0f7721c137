"""One rank of a step: ``python -m components.rank LAUNCHER SCRATCH``, started by torchrun.

It reads ``job.json`` of the scratch directory and leaves how it ended there; rank 0 its result too.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from components.launcher import StepCall, perform
from components.process import die_with, die_with_parent
from components.runner import parse_config
from components.torchrun import JOB, RESULT, outcome_file
from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.training.stopping import STOPPED_STATUS, Stopped, stop_answered


def main(launcher: int, scratch: Path) -> int:
    """Run the step as the rank that torchrun's environment names. Returns the exit status."""
    die_with_parent(os.getppid())
    die_with(launcher)
    signal.signal(signal.SIGTERM, _stop)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        call = _call(scratch)
        _require_devices(call.step)
        result = perform(call, rank, ranks)
        if rank == 0:
            write_atomic(scratch / RESULT, json.dumps(asdict(result)).encode())
    except Stopped as stopped:
        _tell(scratch, rank, "stopped", str(stopped))
        return STOPPED_STATUS
    except InputError as error:
        _tell(scratch, rank, "mistake", str(error))
        return 1
    except Exception as error:
        _tell(scratch, rank, "bug", f"{type(error).__name__}: {error}")
        raise  # the interpreter does not come to print it, and need not: the launcher does
    return 0


def _call(scratch: Path) -> StepCall:
    """The call that the launcher wrote down."""
    job = json.loads((scratch / JOB).read_text())
    named = {name: {key: Path(path) for key, path in job[name].items()} for name in ("inputs", "outputs", "published")}
    run_dir = Path(job["run_dir"]) if job["run_dir"] else None
    config = parse_config(job["step"], job["config"])
    return StepCall(job["step"], config, **named, state_dir=Path(job["state_dir"]), run_dir=run_dir)


def _require_devices(step: str) -> None:
    """Refuse more ranks than GPUs, where the step uses torch and there are GPUs."""
    importlib.import_module(f"components.{step}.step")
    torch, ranks = sys.modules.get("torch"), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch is not None and torch.cuda.is_available() and torch.cuda.device_count() < ranks:
        raise InputError(f"training.processes is {ranks}, and this machine has {torch.cuda.device_count()} GPUs")


def _stop(number: int, _frame: FrameType | None) -> None:
    """SIGTERM outside of training: end at once, but not while this rank is telling that it has stopped."""
    if stop_answered():
        return
    os._exit(128 + number)


def _tell(scratch: Path, rank: int, kind: str, message: str) -> None:
    """Leave how this rank ended, and when."""
    said = {"kind": kind, "message": message, "time": time.time(), "traceback": traceback.format_exc()}
    write_atomic(outcome_file(scratch, rank), json.dumps(said).encode())


def _end(status: int) -> None:
    """Leave without the teardown of libraries: a process group that lost a member may wait there for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _status = 1
    try:
        _status = main(int(sys.argv[1]), Path(sys.argv[2]))
    finally:
        _end(_status)
