"""Where findings of operators are kept between runs: so that a changed recipe takes over what did not change."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.context import StepContext
from components.lock import FileLock, Held

KEPT = 32
"""Operators whose findings are kept, the last used ones: a few runs of a recipe."""


@contextmanager
def findings(context: StepContext) -> Iterator[Path]:
    """The directory for this run's findings; when the run ends well, those unused for longest are removed.

    One run at a time works in the cache of the step. Another one, and a run without a cache, keeps its findings in its
    own state, which survives a kill and not the end of the run.
    """
    if context.cache_dir is None:
        yield context.state_dir
        return
    lock = FileLock(context.cache_dir / ".lock")
    try:
        try:
            lock.take()
        except Held:
            yield context.state_dir
            return
        yield context.cache_dir
        for directory in sorted(context.cache_dir.glob("*/*/"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            shutil.rmtree(directory)
    finally:
        lock.close()


def mark_used(directory: Path) -> None:
    """Note that a run needed the findings in ``directory``, which may not exist yet."""
    directory.mkdir(parents=True, exist_ok=True)
    os.utime(directory)
