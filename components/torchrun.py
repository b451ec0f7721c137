"""Several ranks on this machine, through PyTorch's ``torchrun`` in the current interpreter.

    this process: lock, tracking, publication      components/runner.py
      agent: torchrun, dies with this process      components/agent.py
        ranks: the step, die with the agent        components/rank.py

A rank is in a session of its own (torchrun does that), so no signal to a group reaches it: a request to stop goes from
this process to the agent, and from there to every rank.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import process
from components.context import StepResult, read_result
from components.launcher import RankFailed, StepCall
from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.training import stopping

JOB, RESULT, AGENT = "job.json", "result.json", "agent.json"
_LOG = "torchrun.log"
_POLL_SECONDS = 0.1
_LOG_LINES = 20


class Torchrun:
    """Ranks as processes of this machine, one per GPU where there are GPUs."""

    def run(self, call: StepCall, ranks: int) -> StepResult:
        """Start the ranks, pass on what rank 0 prints and a request to stop, and tell how they ended."""
        if call.registry is not None:
            raise ValueError(f"{call.step}: a step that sees the registry runs in one process")
        scratch = call.state_dir.absolute() / ".ranks"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write_atomic(scratch / JOB, json.dumps(_job(call)).encode())
        with stopping.watch():
            status = self._wait(scratch, ranks)
            try:
                return _outcome(scratch, ranks, status)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _wait(self, scratch: Path, ranks: int) -> int:
        """Exit status of the agent, when it and all ranks are gone."""
        own = [sys.executable, "-m", "components.agent", str(os.getpid()), str(scratch)]
        torchrun = ["--standalone", "--nproc-per-node", str(ranks), "--redirects", "3", "--log-dir", str(scratch)]
        torchrun += ["--local-addr", "127.0.0.1"]  # the host's own name may resolve to nothing in a container
        torchrun += ["--shutdown-timeout", str(int(process.GRACE_SECONDS)), "-m", "components.rank"]
        output = _FirstRank(scratch)
        with (scratch / _LOG).open("wb") as log:
            agent = subprocess.Popen(
                [*own, *torchrun, str(os.getpid()), str(scratch)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal to our group must not reach it beside the one that we pass on
            )
            asked = False
            try:
                while agent.poll() is None:
                    if stopping.stop_requested() and not asked:
                        agent.send_signal(signal.SIGTERM)
                        asked = True
                    output.copy()
                    time.sleep(_POLL_SECONDS)
            finally:
                process.stop_group(agent, process.GRACE_SECONDS + process.MARGIN_SECONDS)
                output.copy()
            return agent.returncode


def _job(call: StepCall) -> dict[str, Any]:
    named = {name: getattr(call, name) for name in ("inputs", "outputs", "published")}
    return {
        "step": call.step,
        "config": call.config.model_dump_json(),
        **{name: {key: str(path.absolute()) for key, path in paths.items()} for name, paths in named.items()},
        "state_dir": str(call.state_dir.absolute()),
        "run_dir": str(call.run_dir.absolute()) if call.run_dir else None,
    }


@dataclass
class _FirstRank:
    """What rank 0 prints, copied to where this process prints."""

    scratch: Path

    def __post_init__(self) -> None:
        self._read = {"stdout": 0, "stderr": 0}

    def copy(self) -> None:
        for name, start in self._read.items():
            path = next(self.scratch.glob(f"*/attempt_0/0/{name}.log"), None)
            if path is None or path.stat().st_size == start:
                continue
            with path.open("rb") as stream:
                stream.seek(start)
                new = stream.read()
            self._read[name] = start + len(new)
            print(new.decode(errors="replace"), end="", file=getattr(sys, name), flush=True)


def outcome_file(scratch: Path, rank: int) -> Path:
    """Where a rank says how it ended."""
    return scratch / f"outcome-{rank}.json"


def _outcome(scratch: Path, ranks: int, status: int) -> StepResult:
    """The result, or the one error that explains all others."""
    if status == 0:
        return read_result(json.loads((scratch / RESULT).read_text()))
    said = {rank: _read(outcome_file(scratch, rank)) for rank in range(ranks)}
    ended = {rank: outcome for rank, outcome in said.items() if outcome}
    by_kind = {
        kind: sorted((o["time"], rank) for rank, o in ended.items() if o["kind"] == kind)
        for kind in ("mistake", "bug", "stopped")
    }
    if by_kind["mistake"]:
        raise InputError(ended[by_kind["mistake"][0][1]]["message"])
    killed = {rank: -code for rank, code in (_read(scratch / AGENT) or {}).items() if code < 0}
    for rank, number in killed.items():
        if number != signal.SIGTERM:
            why = " (the kernel does that when memory is short)" if number == signal.SIGKILL else ""
            raise RankFailed(f"rank {rank} was killed by {signal.Signals(number).name}{why}")
    if by_kind["bug"]:
        rank = by_kind["bug"][0][1]
        raise RankFailed(f"rank {rank}: {ended[rank]['message']}") from _Traceback(ended[rank]["traceback"])
    if by_kind["stopped"]:
        raise stopping.Stopped(ended[by_kind["stopped"][0][1]]["message"])
    if status in (stopping.STOPPED_STATUS, -signal.SIGTERM) or killed:
        raise stopping.Stopped("stopped; the last checkpoint, if there is one, is kept")
    lines = (scratch / _LOG).read_text(errors="replace").splitlines()[-_LOG_LINES:]
    raise RankFailed(f"torchrun ended with status {status}") from _Traceback("\n".join(lines))


class _Traceback(Exception):
    """What a process printed as it failed."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
