"""Scoring in processes of their own: an answer that makes a scorer raise, hang or eat memory costs that answer only.

A worker takes one request a line, JSON in and JSON out, and lives on for the next. The kernel ends it when a request
takes more than its seconds of processor time (not of the clock: a busy machine must change no reward), refuses it
memory beyond its limit, and ends it with its parent. One that the kernel does not end (it is stopped, or stuck where no
signal reaches it) is waited for until a deadline by the clock. Whoever asks gets a verdict in every case, and the
worker is replaced.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import IO

# A worker that uses no processor time and gives no answer (stopped, swapped out) is waited for this much longer.
_CLOCK_FACTOR = 20
# One that is killed while it starts (a machine that runs out of memory kills what is new) is started again, and so is
# one that does not get there.
_STARTS = 3
_START_SECONDS = 60.0
# What a process has that closed its output, or was killed, to be gone. One in uninterruptible sleep stays until the
# kernel lets it go, and nobody waits for that.
_REAP_SECONDS = 2.0
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Request:
    """An answer, and the row's scorer and references: the arguments of ``score_answer``."""

    name: str
    parameters: str
    prediction: str
    answers: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """What became of a request.

    Attributes:
        value: the score in [0, 1]; 0 where there is none.
        parsed: whether the answer could be read.
        fault: what is wrong with the row (its scorer, parameters or references); the answer is not to blame.
        failed: why there is no score: the scorer raised, ran out of time or memory, or died.
    """

    value: float = 0.0
    parsed: bool = False
    fault: str | None = None
    failed: str | None = None


class _Worker:
    """One child process, started for the first request and again after its death."""

    def __init__(self, seconds: float, memory_mb: int) -> None:
        self._seconds, self._memory_mb = seconds, memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._said = b""
        self.deadline = 0.0
        self.index = -1

    def send(self, request: Request, index: int) -> None:
        # A child of a fork must not talk into its parent's pipe.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._start()
        self.index, self.deadline = index, time.monotonic() + _CLOCK_FACTOR * self._seconds
        self._write(json.dumps(asdict(request)).encode() + b"\n")

    def _start(self) -> None:
        # So that what judges is part of the code of every step that asks it. It imports scoring.score, which imports
        # this module.
        from scoring import judge_worker

        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", judge_worker.__name__, str(os.getpid()), str(self._seconds)]
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for _ in range(_STARTS):
            self._process = _child([*command, str(self._memory_mb)], environment)
            self._owner, self._said = os.getpid(), b""
            os.set_blocking(self._input.fileno(), False)
            if self._says_ready():
                return
            status = self._status()
            self.close()
            if status is not None and status >= 0:
                break  # it ended by itself, and would again
        ended = f"within {_START_SECONDS:g} s" if status is None else f"(exit status {status})"
        raise RuntimeError(f"the scoring process did not start {ended}")

    def _says_ready(self) -> bool:
        until = time.monotonic() + _START_SECONDS
        while _ready(self.output.fileno(), select.POLLIN, until) and self._read():
            if self._said == b"ready\n":
                self._said = b""
                return True
        return False

    def _read(self) -> bool:
        """Take what is there; whether there was anything but the end."""
        part = os.read(self.output.fileno(), _READ_BYTES)
        self._said += part
        return bool(part)

    def _write(self, line: bytes) -> None:
        """As much as is taken before the deadline: a process that is stopped takes what a pipe holds."""
        descriptor, rest = self._input.fileno(), memoryview(line)
        with suppress(BrokenPipeError):  # it has died: its empty answer says so
            while rest and _ready(descriptor, select.POLLOUT, self.deadline):
                rest = rest[os.write(descriptor, rest) :]

    def _status(self) -> int | None:
        """Exit status of a process that closed its output; None if it lives on."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_REAP_SECONDS)
        return None

    @property
    def _input(self) -> IO[bytes]:
        assert self._process is not None and self._process.stdin is not None
        return self._process.stdin

    @property
    def output(self) -> IO[bytes]:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout

    def receive(self) -> Verdict | None:
        """The verdict that is there to be read; of a worker that died, why; None of one that has said a part of it."""
        going_on = self._read()
        if self._said.endswith(b"\n"):
            verdict, self._said = Verdict(**json.loads(self._said)), b""
            if verdict.failed is not None:
                self.close()  # what an error of memory or of depth left behind is nobody's to know
            return verdict
        if going_on:
            return None
        status = self._status()
        self.close()
        return Verdict(failed=_why_ended(status, self._seconds))

    def give_up(self) -> Verdict:
        """End a worker that does not answer."""
        self.close()
        return Verdict(failed=f"no answer within {_CLOCK_FACTOR * self._seconds:g} s")

    def close(self) -> None:
        if self._process is None or self._owner != os.getpid():
            return
        self._process.kill()
        self._status()
        for stream in (self._input, self.output):
            with suppress(BrokenPipeError):
                stream.close()
        self._process = None


def _child(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a process from a thread that lives as long as this process.

    The kernel ends a child with the thread that started it: one of a thread that asked once would die while it works
    for the next.
    """
    starter = _starters.get(os.getpid())
    if starter is None:  # this process's first, or the first of this fork
        starter = _starters[os.getpid()] = ThreadPoolExecutor(1, thread_name_prefix="judges")
    pipe = subprocess.PIPE
    # Unbuffered: what is waited for is the pipe.
    return starter.submit(subprocess.Popen, command, bufsize=0, stdin=pipe, stdout=pipe, env=environment).result()


_starters: dict[int, ThreadPoolExecutor] = {}


def _ready(descriptor: int, event: int, until: float) -> bool:
    """Wait for a pipe until then; whether it can be read or written, or has no other end."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(1000 * max(0.0, until - time.monotonic()) + 1))


def _why_ended(status: int | None, seconds: float) -> str:
    from signal import SIGPROF, Signals

    if status is None:
        return "its process closed its output"
    if status == -SIGPROF:
        return f"over {seconds:g} s of processor time"
    return f"its process died of {Signals(-status).name}" if status < 0 else f"its process ended with status {status}"


class Judges:
    """``workers`` processes that score answers. They start when they are first needed, and end with this process.

    Args:
        workers: how many score at the same time.
        seconds: processor time for one answer.
        memory_mb: address space of one worker, in MiB.
    """

    def __init__(self, workers: int = 1, *, seconds: float = 2.0, memory_mb: int = 2048) -> None:
        if workers < 1 or seconds <= 0 or memory_mb < 1:
            raise ValueError("workers, seconds and memory_mb must be positive")
        self._workers = [_Worker(seconds, memory_mb) for _ in range(workers)]
        self._lock = Lock()

    def ask(self, requests: Sequence[Request]) -> list[Verdict]:
        """A verdict for every request, in order.

        Raises:
            RuntimeError: no worker can be started at all.
        """
        verdicts = [Verdict()] * len(requests)
        with self._lock:
            waiting = deque(enumerate(requests))
            idle, busy = list(self._workers), dict[int, _Worker]()
            try:
                while waiting or busy:
                    while waiting and idle:
                        worker = idle.pop()
                        index, request = waiting.popleft()
                        worker.send(request, index)
                        busy[worker.output.fileno()] = worker
                    for worker, verdict in _answered(busy):
                        verdicts[worker.index] = verdict
                        idle.append(worker)
            except BaseException:
                # A verdict that nobody reads now would be taken for the next request's.
                self._end()
                raise
        return verdicts

    def close(self) -> None:
        """End the workers; a later request starts new ones."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.close()


def _answered(busy: dict[int, _Worker]) -> list[tuple[_Worker, Verdict]]:
    """Wait for workers to answer, die or run out of time; those that did are no longer busy."""
    poll = select.poll()
    for descriptor in busy:
        poll.register(descriptor, select.POLLIN)
    patience = max(0.0, min(worker.deadline for worker in busy.values()) - time.monotonic())
    readable = {descriptor for descriptor, _ in poll.poll(1000 * patience + 1)}
    now = time.monotonic()
    answered = []
    for descriptor, worker in list(busy.items()):
        verdict = worker.receive() if descriptor in readable else None
        if verdict is None and worker.deadline <= now:
            verdict = worker.give_up()
        if verdict is not None:
            answered.append((busy.pop(descriptor), verdict))
    return answered


_shared: Judges | None = None


def shared_judges() -> Judges:
    """One worker for whoever scores single answers in this process."""
    global _shared
    if _shared is None:
        _shared = Judges()
        atexit.register(_shared.close)
    return _shared
