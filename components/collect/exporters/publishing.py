"""What both exporters do: a directory that appears when it is complete, and the rows that a format cannot hold."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.data.errors import InputError
from model.data.schema import Media

REJECTS = "rejects.jsonl"
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "MATROSKA": "mkv"}
_PLAIN = re.compile(r"[A-Za-z0-9]{1,16}")


@dataclass(frozen=True)
class Exported:
    """What became of a dataset: rows in = rows + rejects."""

    rows: int
    rejects: int


class Unfit(Exception):
    """Why a row cannot be said in a format."""


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A hidden directory to write to, which gets its name at the end; after an error it is removed.

    Raises:
        InputError: ``directory`` holds something already.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory}: exists already and is not empty")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def file_ending(medium: Media) -> str:
    """The ending of a file with these bytes, by what they are; what is no plain word would lead elsewhere."""
    name = medium["format"] or ""
    if not _PLAIN.fullmatch(name):
        name = "PNG" if medium["kind"] == "image" else "MP4"
    return _ENDINGS.get(name, name.lower())


def reject_line(row_id: str, reason: str) -> str:
    """A line of the file of rejects."""
    return json_line({"id": row_id, "step": "export", "reason": reason})


def json_line(value: dict) -> str:
    """A value as one line of JSON, its keys in the order given."""
    return json.dumps(value, ensure_ascii=False) + "\n"
