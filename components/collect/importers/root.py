"""The source's directory: every file below it, none outside it, and never more of one than a limit."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from components.collect.importers.record import Refusal
from model.data.artifact import file_sha256
from model.data.errors import InputError

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


class SourceRoot:
    """Opens files below one directory."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory")
        self.path = directory.resolve()

    def files(self, matches: Callable[[str], bool], only: str | None = None) -> Iterator[str]:
        """Relative paths of the files whose names, in lower case, match, directory by directory in the order of names.

        Links to directories are not entered. Memory: the names of one directory at a time.

        Args:
            only: this file instead, whatever its name.

        Raises:
            InputError: there is none.
        """
        if only is not None:
            yield self.relative(self.require(only))
            return
        for directory, folders, names in os.walk(self.path, onerror=self._gone):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if matches(name.lower()) and not name.startswith("."):
                    yield (Path(directory) / name).relative_to(self.path).as_posix()

    def require(self, path: str, base: Path | None = None) -> Path:
        """``locate`` for a file that the source cannot do without.

        Raises:
            InputError: it cannot be read.
        """
        try:
            return self.locate(path, base)
        except Refusal as refusal:
            raise InputError(f"{self.path}: {refusal}") from None

    def locate(self, path: str, base: Path | None = None) -> Path:
        """The regular file at ``path``, relative to ``base`` or else to the source.

        Raises:
            Refusal: an address, a path that leads outside (links followed), no file, or none to be read as one.
        """
        if "://" in path:
            raise Refusal(f"{path[:120]}: an address; nothing is fetched")
        if "\0" in path or not path.strip():
            raise Refusal("a path is empty or holds a zero byte")
        named = (base or self.path) / path
        # By its words alone first: what lies outside is not even looked at.
        if not Path(os.path.normpath(named)).is_relative_to(self.path):
            raise Refusal(f"{path[:200]}: leads outside the source's directory")
        try:
            found = named.resolve(strict=True)
            kind = found.stat().st_mode if found.is_relative_to(self.path) else 0
        except FileNotFoundError:
            self.check_there()
            raise Refusal(f"{path[:200]}: no such file") from None
        except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a file used as a directory
            raise Refusal(f"{path[:200]}: {getattr(error, 'strerror', None) or error}") from None
        if not found.is_relative_to(self.path):
            raise Refusal(f"{path[:200]}: leads outside the source's directory")
        if not stat.S_ISREG(kind):
            raise Refusal(f"{path[:200]}: no regular file")
        return found

    def relative(self, path: Path) -> str:
        """How a file of the source is named."""
        return path.relative_to(self.path).as_posix()

    def check_there(self) -> None:
        """Notice a source that disappeared.

        Raises:
            InputError: it did.
        """
        if not self.path.is_dir():
            raise InputError(f"{self.path}: the source disappeared while it was read")

    def read(self, path: str, base: Path | None, limit: int) -> bytes:
        """The bytes of a file, whose size is looked at first.

        Raises:
            Refusal: see ``locate``; or it is larger than ``limit`` bytes.
            InputError: the disk fails.
        """
        found = self.locate(path, base)
        with self.open(found) as stream:
            if (size := os.fstat(stream.fileno()).st_size) > limit:
                raise Refusal(f"{path[:200]}: {size} bytes; {limit} are left of max_row_bytes")
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise Refusal(f"{path[:200]}: grew over max_row_bytes while it was read")
        return data

    def sha256(self, path: str, base: Path | None) -> tuple[str, str]:
        """A file's path in the source, and its SHA-256."""
        found = self.locate(path, base)
        try:
            return self.relative(found), file_sha256(found)
        except OSError as error:
            raise self.trouble(found, error) from error

    def stream(self, path: str) -> BinaryIO:
        """Open a file that the source cannot do without.

        Raises:
            InputError: it cannot be read.
        """
        found = self.require(path)
        try:
            return self.open(found)
        except Refusal as refusal:
            raise InputError(f"{self.path}: {refusal}") from None

    def open(self, path: Path) -> BinaryIO:
        """Open a file that ``locate`` gave.

        Raises:
            Refusal: it has just gone, or may not be read.
            InputError: the source has gone, or the disk fails.
        """
        try:
            # The path has no link left; should one appear now, it is not followed. A pipe does not block.
            return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.ELOOP):
                self.check_there()
                raise Refusal(f"{self.relative(path)}: {error.strerror}") from None
            raise self.trouble(path, error) from error

    def trouble(self, path: Path, error: OSError) -> InputError:
        """What to say of a disk that fails."""
        self.check_there()
        return InputError(f"{path}: {error.strerror or error}")

    def _gone(self, error: OSError) -> None:
        raise self.trouble(Path(error.filename or self.path), error)


def lines(stream: BinaryIO, limit: int, *, blank: bool = False) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines (from 1) without their ends and without a byte-order mark; blank ones only with ``blank``.

    A line of more than ``limit`` bytes is None: it is passed over in pieces.
    """
    number = 0
    while line := stream.readline(limit + 2):
        number += 1
        if len(line.rstrip(b"\r\n")) > limit:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
            yield number, None
            continue
        if number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        if blank or line.strip():
            yield number, line.rstrip(b"\r\n")
