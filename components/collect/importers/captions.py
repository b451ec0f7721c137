"""A plain folder: ``x.jpg`` with ``x.txt`` beside it, in any depth of folders."""

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from components.collect.importers.config import CaptionsSource
from components.collect.importers.record import MediaSource, Record, Refusal, parsed, question
from components.collect.importers.root import SourceRoot

DEFAULT_TASK = "caption"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
_TEXT_ENDINGS = (".txt", ".caption")


def records(source: CaptionsSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every name with an image, a video or a text. The names choose pairs; what a file holds decides what it is."""
    wanted = IMAGE_ENDINGS + VIDEO_ENDINGS + _TEXT_ENDINGS
    files = root.files(lambda name: name.lower().endswith(wanted), source.file)
    # Sorted by name, "a.jpg", "a.txt" may be parted by "a-b.jpg": files are grouped directory by directory.
    for _, listed in groupby(files, os.path.dirname):
        by_stem = sorted((os.path.splitext(file)[0], file) for file in listed)  # noqa: PTH122 - a string, no path
        groups = ((stem, [file for _, file in group]) for stem, group in groupby(by_stem, lambda pair: pair[0]))
        yield from parsed(groups, lambda members, place: _record(members, place, source, root))


def _record(members: list[str], place: str, source: CaptionsSource, root: SourceRoot) -> Record:
    media = [_medium(file) for file in members if not file.lower().endswith(_TEXT_ENDINGS)]
    texts = [file for file in members if file.lower().endswith(_TEXT_ENDINGS)]
    if not media:
        raise Refusal(f"no image or video beside {PurePosixPath(texts[0]).name}")
    if not texts:
        raise Refusal(f"no text beside {PurePosixPath(members[0]).name}")
    if len(media) > 1 or len(texts) > 1:
        raise Refusal(f"several files of one name: {', '.join(PurePosixPath(file).name for file in members)}")
    data = root.read(texts[0], None, source.max_row_bytes)
    try:
        caption = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{texts[0]}: not UTF-8 at byte {error.start}") from None
    messages = question(source.prompt, media, caption.removesuffix("\n").removesuffix("\r"))
    return Record(place, id=place, messages=messages, media=media)


def _medium(file: str) -> MediaSource:
    return MediaSource("video" if Path(file).suffix.lower() in VIDEO_ENDINGS else "image", path=file)
