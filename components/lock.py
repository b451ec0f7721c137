"""A lock between processes that the kernel lets go when its holders are dead."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.1


class Held(Exception):
    """Somebody else holds the lock.

    Attributes:
        pid: the holder's process id; 0 where it is not known.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


class FileLock:
    """An exclusive lock on a file that names its holder.

    A child that inherits ``fileno()`` holds the lock too: it is free when all of them are gone. No file needs to be
    cleaned up after a kill, and the file is never removed, because waiters may have it open.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def fileno(self) -> int:
        """The descriptor that carries the lock."""
        return self._descriptor

    def take(self) -> None:
        """Take the lock at once.

        Raises:
            Held: somebody else has it.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip("\0\n ")
            raise Held(int(text) if text.isdigit() else 0) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def wait(self) -> None:
        """Take the lock when its holder lets it go. Polls, so that a signal ends the wait."""
        while True:
            try:
                return self.take()
            except Held:
                time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Let the lock go, unless a child inherited it."""
        os.close(self._descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on ``path``, waiting for it in silence: for short critical sections."""
    lock = FileLock(path)
    try:
        lock.wait()
        yield
    finally:
        lock.close()
