"""Life and death of child processes: nobody outlives the process that started it."""

import ctypes
import os
import select
import signal
import subprocess
import threading
import time
from contextlib import suppress
from types import FrameType

_PR_SET_PDEATHSIG = 1


def seconds_of(name: str, default: float) -> float:
    """A number of seconds from the environment; what is none ends the program in one line."""
    given = os.environ.get(name) or str(default)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SystemExit(f"{name}: not a number of seconds: {given}")
    return seconds


GRACE_SECONDS = seconds_of("FOVEA_GRACE_SECONDS", 30.0)
"""What a training process has to write its checkpoint when it is asked to stop (by default Kubernetes' 30 seconds).

Whoever passes the request on waits ``MARGIN_SECONDS`` longer than the one that it is passed to.
"""
MARGIN_SECONDS = 5.0
_REAP_SECONDS = 3.0
_REPEAT_SECONDS = 0.5


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel for ``signal_number`` when the parent dies. Call it first thing in a child.

    The signal follows the *thread* that started this process, so a child belongs in a thread that waits for it.

    Args:
        parent: process id of the parent. If it is gone already, this process exits at once.
        signal_number: what the kernel sends.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(128 + signal_number)


def die_with(pid: int) -> None:
    """End this process, and its process group if ``pid`` leads it, when the ancestor ``pid`` is gone.

    KFP puts a shell between its runner and a step, and the kernel's signal reaches the shell only.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(128 + signal.SIGKILL)
    threading.Thread(target=_kill_after, args=(descriptor, pid), daemon=True).start()


def _kill_after(descriptor: int, pid: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.poll()
    if os.getpgrp() == pid:
        os.killpg(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_own_group(_number: int, _frame: FrameType | None) -> None:
    """Signal handler of a process that leads a group: end the whole group, itself included."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def stop_own_group(_number: int, _frame: FrameType | None) -> None:
    """Signal handler of a process that leads a group: ask all others to end, and by force when the grace is over.

    The leader itself goes on, to see them end. They are asked again and again: one may have started in between.
    """
    deadline = time.monotonic() + GRACE_SECONDS + 2 * MARGIN_SECONDS
    # Nothing, by a function: a child that starts now would inherit SIG_IGN.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)

    def ask(number: int, frame: FrameType | None) -> None:
        if time.monotonic() > deadline:
            kill_own_group(number, frame)
        os.killpg(os.getpgrp(), signal.SIGTERM)

    signal.signal(signal.SIGALRM, ask)
    signal.setitimer(signal.ITIMER_REAL, 0.001, _REPEAT_SECONDS)


def stop_group(process: subprocess.Popen[bytes], grace_seconds: float = GRACE_SECONDS + 3 * MARGIN_SECONDS) -> None:
    """End the process group that ``process`` leads: politely, then by force. Returns when nothing of it is left.

    ``process`` must have been started with ``start_new_session=True``. An interrupt (a second Ctrl-C) ends the wait.
    """
    try:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_seconds)
    finally:
        # Orphans of the group are reaped by init; one that init leaves as a zombie is dead, and worth no longer wait.
        deadline = time.monotonic() + _REAP_SECONDS
        while _signal_group(process.pid, signal.SIGKILL) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.02)


def _signal_group(group: int, signal_number: int) -> bool:
    """Whether there was anybody to signal."""
    try:
        os.killpg(group, signal_number)
    except ProcessLookupError:
        return False
    return True
