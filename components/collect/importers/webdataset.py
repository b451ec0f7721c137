"""WebDataset: tar files whose members with one key, next to each other, make a row.

The key is a member's path up to the first dot of its name; the rest says what it is: ``jpg``, ``0.png``, ``mp4``,
``txt`` (a caption) or ``json`` (a conversation, a question with its answer, or a row of our own export). Nothing is
unpacked to the disk.
"""

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from components.collect.importers.captions import IMAGE_ENDINGS, VIDEO_ENDINGS
from components.collect.importers.cells import record_of, resolve
from components.collect.importers.config import Columns, WebdatasetSource
from components.collect.importers.conversations import read_turns, split_of
from components.collect.importers.own_fields import kept_medium, take_own_fields
from components.collect.importers.record import (
    MediaSource,
    Record,
    Refusal,
    given_id,
    mapping,
    optional_text,
    parsed,
    place_media,
    question,
)
from components.collect.importers.root import SourceRoot
from model.data.errors import InputError

DEFAULT_TASK = "caption"
ENDINGS = (".tar", ".tar.gz", ".tgz")
_HEADER_BYTES = 1 << 20
_TEXTS = ("txt", "caption", "text")


@dataclass
class _Group:
    """The members of one key: bytes by what follows the key."""

    key: str
    parts: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    refused: str | None = None


def records(source: WebdatasetSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every group of members of every tar file.

    Raises:
        InputError: a tar file is truncated or damaged.
    """
    for file in root.files(lambda name: name.endswith(ENDINGS), source.file):
        groups = _groups(root, file, source.max_row_bytes)
        # A key may come back later in the same file: the number tells the groups apart.
        places = ((f"{file}#{index}:{group.key}", group) for index, group in enumerate(groups))
        yield from parsed(places, lambda group, place: _record(group, place, source))


def _groups(root: SourceRoot, file: str, limit: int) -> Iterator[_Group]:
    group: _Group | None = None
    with root.stream(file) as raw:
        stream = gzip.GzipFile(fileobj=raw) if file.lower().endswith("gz") else raw
        try:
            bounded = _Bounded(stream, max(limit, _HEADER_BYTES))
            with tarfile.TarFile(fileobj=bounded) as tar:  # type: ignore[arg-type]
                while (member := tar.next()) is not None:
                    tar.members = []  # the module keeps them all, for a list that nobody asks for
                    if member.isdir():
                        continue
                    key, kind = _split(member.name)
                    if group is not None and (group.key != key or kind in group.parts):
                        yield group
                        group = None
                    group = group or _Group(key)
                    _add(group, member, kind, tar, limit)
                bounded.require_end()
        # The module checks no number of a sparse file's map, and follows a chain of long names by recursion.
        except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, RecursionError) as error:
            raise InputError(
                f"{file}: a truncated or damaged tar file ({' '.join(str(error).split())[:200]})"
            ) from error
    if group is not None:
        yield group


def _split(name: str) -> tuple[str, str]:
    """Key and kind of a member: ``a/b.0.jpg`` is (``a/b``, ``0.jpg``)."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def _add(group: _Group, member: tarfile.TarInfo, kind: str, tar: tarfile.TarFile, limit: int) -> None:
    """Read a member into its group, or note why the group can be no row."""
    name = member.name[:200]
    group.size += member.size
    if member.issym() or member.islnk():
        group.refused = f"{name}: a link"
    elif not member.isreg():
        group.refused = f"{name}: no regular file"
    elif name.startswith("/") or ".." in PurePosixPath(name).parts:
        group.refused = f"{name}: a path that leads outside"
    elif group.size > limit:
        group.refused = f"{name}: the row has more than {limit} bytes (max_row_bytes)"
    if group.refused is not None:
        group.parts = dict.fromkeys([*group.parts, kind], b"")
        return
    stream = tar.extractfile(member)
    data = stream.read() if stream is not None else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{name}: the file ends early")
    group.parts[kind] = data


def _record(group: _Group, place: str, source: WebdatasetSource) -> Record:
    if group.refused is not None:
        raise Refusal(group.refused)
    media = {kind: _medium(kind, data) for kind, data in group.parts.items() if _kind(kind)}
    fields = _json(group.parts["json"]) if "json" in group.parts else {}
    if "messages" in fields and "media" in fields:
        return _own(fields, group, place)
    found = list(media.values())
    text = next((group.parts[kind] for kind in _TEXTS if kind in group.parts), None)
    turns = fields.get("conversations", fields.get("messages"))
    if turns is not None:
        record = Record(place, messages=read_turns(turns), media=found)
        place_media(record.messages, found, several=True)
    elif text is not None:
        record = Record(place, messages=question(source.prompt, found, _decoded(text)), media=found)
    elif fields:
        record = _plain(fields, place, source)
        record.media = found
        place_media(record.messages, found, several=True)
    else:
        raise Refusal("no txt or json beside the media")
    record.id, record.split = given_id(fields) or group.key, split_of(fields)
    return record


def _plain(fields: dict[str, Any], place: str, source: WebdatasetSource) -> Record:
    """A json of question and answer, or of a caption."""
    try:
        columns = resolve(Columns(), fields, "json")
    except InputError as error:
        raise Refusal(str(error)) from None
    columns = {name: column for name, column in columns.items() if name not in ("image", "video")}
    return record_of(fields, columns, place, prompt=source.prompt, split=None, base=None)


def _own(fields: dict[str, Any], group: _Group, place: str) -> Record:
    """A row as our own export writes it: its media in the order of the json, their bytes in members of their own."""
    record = Record(place, id=given_id(fields), split=split_of(fields), messages=read_turns(fields["messages"]))
    if not isinstance(fields["media"], list):
        raise Refusal("media is no list")
    for value in fields["media"]:
        medium = kept_medium(value)
        if (member := mapping(value, "a medium").get("member")) is not None:
            if not isinstance(member, str) or member not in group.parts:
                raise Refusal(f"no member {str(member)[:100]} beside the json")
            medium.data = group.parts[member]
        record.media.append(medium)
    record.chosen, record.rejected = optional_text(fields, "chosen"), optional_text(fields, "rejected")
    return take_own_fields(record, fields)


def _kind(kind: str) -> str | None:
    ending = "." + kind.rpartition(".")[2]
    return "image" if ending in IMAGE_ENDINGS else "video" if ending in VIDEO_ENDINGS else None


def _medium(kind: str, data: bytes) -> MediaSource:
    return MediaSource("video" if _kind(kind) == "video" else "image", data=data)


def _json(data: bytes) -> dict[str, Any]:
    try:
        return mapping(json.loads(data.decode("utf-8-sig")), "the json")
    except UnicodeDecodeError as error:
        raise Refusal(f"json: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"json: not JSON: {error}") from None


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise Refusal(f"txt: not UTF-8 at byte {error.start}") from None


class _Bounded:
    """A stream that refuses to read more at once than a limit: a tar header may claim any size for what it holds."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._last = b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._limit:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        self._last = self._stream.read(size)
        return self._last

    def require_end(self) -> None:
        """The module takes whatever is no header, after the first one, for the end of the archive.

        Raises:
            tarfile.ReadError: the archive was cut, a header is damaged, or another archive was appended to it.
        """
        if self._last != b"\0" * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")
        while rest := self._stream.read(_HEADER_BYTES):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("more follows after its end")
