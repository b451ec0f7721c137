"""A DVC remote as a shelf of objects: put one, measure one, read one. No repository is needed, with or without git.

Objects lie where DVC 3 puts them, ``files/md5/ab/cdef...``, so that ``dvc pull`` finds what is put here, and what
``dvc push`` left is found here. Options and credentials of a remote come from DVC's own system and user configuration
(a mounted secret, with ``DVC_GLOBAL_CONFIG_DIR``): the section whose ``url`` is the remote's.
"""

import errno
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from model.data.errors import InputError

SCHEMES = ("s3", "gs", "azure", "ssh", "http", "https", "webdav", "webdavs", "hdfs", "webhdfs", "oss", "gdrive")
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_LAYOUT = ("files", "md5")
_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
T = TypeVar("T")


def check_remote(text: str) -> str:
    """The address of a remote in the form that is written down: a URL without credentials, or an absolute path.

    Raises:
        InputError: of an unknown kind, or it holds a password; the text is not repeated, for it may be one.
    """
    if not text.strip() or any(ord(character) < 32 for character in text):
        raise InputError("a remote is a directory or a URL")
    if "://" not in text:
        return str(Path(text).absolute())
    try:
        parts = urlsplit(text)
    except ValueError:
        raise InputError("a remote's address is no URL") from None
    if parts.scheme == "file":
        return str(Path(parts.path).absolute())
    if parts.scheme not in SCHEMES:
        raise InputError(f"a remote's address begins with {', '.join(SCHEMES)} or file, or is a directory")
    token = parts.username is not None and parts.scheme in ("http", "https")
    if parts.password is not None or token or parts.query or parts.fragment:
        raise InputError("credentials belong into DVC's configuration, not into the address of a remote")
    return text.rstrip("/")


class _Shelf(NamedTuple):
    filesystem: Any
    root: str
    local: bool


class DataRemote:
    """A DVC remote. Everything that goes wrong there is an InputError of one line that names it."""

    def __init__(self, url: str) -> None:
        """Open the remote at ``url`` (a directory, or an address that DVC knows).

        Raises:
            InputError: the address is wrong, DVC's plugin for it is not installed, or its directory is missing.
        """
        self.url = check_remote(url)
        self._shelf = self._attempt("cannot be opened", _open, self.url)
        if self._shelf.local and not Path(self.url).parent.is_dir():
            raise InputError(f"DVC remote {self.url}: no such directory; is its disk mounted?")

    def size(self, oid: str) -> int | None:
        """Bytes of an object; None where there is no such object."""
        return self._attempt("cannot be read", self._size, oid)

    def put(self, source: Path, oid: str) -> None:
        """Store a file as ``oid``, whole or not at all where the remote can (a directory always can)."""
        self._attempt("cannot be written", self._put, source, oid)

    def read(self, oid: str) -> Iterator[bytes]:
        """The bytes of an object, a mebibyte at a time.

        Raises:
            InputError: there is no such object, or reading stopped.
        """
        stream = self._attempt("cannot be read", self._shelf.filesystem.open, self._path(oid), "rb")
        with stream:
            while chunk := self._attempt("cannot be read", stream.read, _CHUNK):
                yield chunk

    def _size(self, oid: str) -> int | None:
        try:
            size = self._shelf.filesystem.info(self._path(oid))["size"]
        except FileNotFoundError:
            return None
        return -1 if size is None else int(size)  # a web server need not say: then the object is not trusted

    def _put(self, source: Path, oid: str) -> None:
        if self._shelf.local:
            _copy(source, Path(self._path(oid)))
        else:
            self._shelf.filesystem.put_file(str(source), self._path(oid))

    def _path(self, oid: str) -> str:
        if not MD5.fullmatch(oid):
            raise ValueError(f"{oid!r} is no object of DVC")
        return self._shelf.filesystem.join(self._shelf.root, *_LAYOUT, oid[:2], oid[2:])

    def _attempt(self, what: str, call: Callable[..., T], *arguments: object) -> T:
        """Call; any failure of the remote becomes one line. Not raised while the cause is handled, because whoever
        looks for a full disk behind an error would take it for one of this machine."""
        try:
            return call(*arguments)
        except _remote_errors() as error:
            problem = _one_line(error)
        raise InputError(f"DVC remote {self.url}: {what}: {problem}")


def _open(url: str) -> _Shelf:
    from dvc.config import Config
    from dvc.fs import get_cloud_fs

    config = Config()
    named = [name for name, section in config["remote"].items() if section.get("url", "").rstrip("/") == url]
    kind, options, root = get_cloud_fs(config, **({"name": named[0]} if named else {"url": url}))
    return _Shelf(kind(**options), root, kind.protocol == "local")


def _copy(source: Path, target: Path) -> None:
    """As DVC keeps objects: read-only. Its own copy would leave a partial file behind on a full disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        shutil.copyfile(source, partial)
        partial.chmod(0o444)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _remote_errors() -> tuple[type[Exception], ...]:
    """What DVC's file systems raise for a remote that is away, full, foreign or not ours to read."""
    import aiohttp
    from dvc.exceptions import DvcException
    from dvc_objects.fs.errors import AuthError, ConfigError

    return (OSError, ImportError, aiohttp.ClientError, DvcException, AuthError, ConfigError)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _FULL:
        return "it is full"
    if isinstance(error, FileNotFoundError):
        return "no such object"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
