"""A polite end of training: SIGTERM asks for it, the loop answers with a checkpoint.

Contract: the loop trains under ``with watch():``, asks ``stop_requested()`` after every optimiser step (ranks agree
first: one of them may see the signal a step before the others), writes a checkpoint and raises ``Stopped``. What takes
long between two steps (a rollout) asks too, and gives up with ``Interrupted``, which the loop answers likewise. Whoever
runs the step turns that into exit status 143. The request may come again and again: once ``stop_answered()`` the
process is on its way out and has yet to say how it ended, and its own handler must let the signal pass. Imports no
torch.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED_STATUS = 128 + signal.SIGTERM
"""Exit status of a process that ended because it was asked to."""

_requested = threading.Event()
_answered = threading.Event()


class Stopped(Exception):
    """Training ended before its last step because it was asked to; of the last one that was done there is a checkpoint.

    The message says where, e.g. ``sft stopped after step 12 of 100; a checkpoint is written``.
    """


class Interrupted(Exception):
    """Work between two optimiser steps was given up because this process was asked to stop; what it stored is whole."""


def stop_requested() -> bool:
    """Whether SIGTERM has reached this process since ``watch`` began; False outside of one."""
    return _requested.is_set()


def stop_answered() -> bool:
    """Whether the last ``watch`` ended with ``Stopped``: the request is met, and a repeated one asks for nothing."""
    return _answered.is_set()


def give_up_if_requested() -> None:
    """For work that may be given up anywhere.

    Raises:
        Interrupted: ``stop_requested()``.
    """
    if stop_requested():
        raise Interrupted


@contextmanager
def watch() -> Iterator[None]:
    """Note SIGTERM instead of dying of it, until the block ends.

    A request that the block did not answer with ``Stopped`` (it came after the last step) goes to the handler that was
    there before. Handlers belong to the main thread: in any other this does nothing, and so does a watch in a watch.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _note:
        yield
        return
    _requested.clear()
    _answered.clear()
    previous = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    except Stopped:
        _answered.set()
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
        unanswered = stop_requested() and not stop_answered()
        _requested.clear()
        if unanswered:
            signal.raise_signal(signal.SIGTERM)


def _note(_number: int, _frame: FrameType | None) -> None:
    _requested.set()
