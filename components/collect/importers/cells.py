"""A row of a table (Parquet, Arrow, CSV, a json of plain keys) to a record: which column is what, and its media."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from components.collect.importers.config import Columns
from components.collect.importers.conversations import read_turns
from components.collect.importers.record import (
    MediaSource,
    Record,
    Refusal,
    answer_texts,
    place_media,
    question,
    text,
)
from model.data.errors import InputError

USUAL = {
    "id": ("id", "row_id", "question_id"),
    "image": ("image", "images", "img", "image_path", "image_file", "file_name", "filename"),
    "video": ("video", "videos", "video_path"),
    "question": ("question", "query", "prompt", "problem", "instruction", "input"),
    "answer": ("answer", "answers", "caption", "captions", "text", "label", "response", "output", "solution"),
    "system": ("system", "system_prompt"),
    "conversations": ("conversations", "messages"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "split": ("split",),
    "task": ("task",),
}
"""Names by which columns are known where the configuration names none, the first present one counts."""


def resolve(columns: Columns, present: Iterable[str], where: str) -> dict[str, str]:
    """What each column is for, by our names; a column that is not there is left out.

    Raises:
        InputError: a column that the configuration names is missing, or nothing tells the answer.
    """
    there = list(present)
    found: dict[str, str] = {}
    for name, usual in USUAL.items():
        named = getattr(columns, name)
        if named is not None and named not in there:
            raise InputError(f"{where}: no column {named!r} (columns.{name}); there are {_listed(there)}")
        chosen = named or next((column for column in there if column.strip().lower() in usual), None)
        if chosen is not None:
            found[name] = chosen
    if not {"answer", "conversations", "chosen"} & set(found):
        raise InputError(f"{where}: no column tells the answer; name it in columns.answer; there are {_listed(there)}")
    return found


def record_of(
    row: dict[str, Any], columns: dict[str, str], place: str, *, prompt: str, split: str | None, base: Path | None
) -> Record:
    """The record of one row.

    Args:
        row: values by column.
        columns: see ``resolve``.
        prompt: what is asked where no column asks.
        split: of the file; the row's own goes before it.
        base: directory that paths are relative to (None: the source's).
    """

    def cell(name: str) -> Any:
        value = row.get(columns[name]) if name in columns else None
        return None if value == "" else value

    kinds: tuple[Literal["image", "video"], ...] = ("image", "video")
    media = [medium for kind in kinds for medium in _media(cell(kind), kind, base)]
    record = Record(place, media=media, split=_optional(cell("split"), "split") or split)
    record.id, record.task = _optional(cell("id"), "id"), _optional(cell("task"), "task")
    system = _optional(cell("system"), "system")
    if (turns := cell("conversations")) is not None:
        record.messages = read_turns(turns)
        place_media(record.messages, media, several=True)
        return record
    asked = prompt if "question" not in columns else text(cell("question"), columns["question"])
    if cell("chosen") is not None or cell("rejected") is not None:
        record.chosen = text(cell("chosen"), "chosen")
        record.rejected = text(cell("rejected"), "rejected")
        record.messages = question(asked, media, record.chosen, system)
        record.answers = answer_texts(cell("answer"), columns["answer"]) if cell("answer") is not None else None
        return record
    if "answer" not in columns:
        raise Refusal("the row has no answer")
    record.answers = answer_texts(cell("answer"), columns["answer"])
    record.messages = question(asked, media, record.answers[0], system)
    return record


def _media(value: Any, kind: Literal["image", "video"], base: Path | None) -> list[MediaSource]:
    if value is None:
        return []
    return [_medium(one, kind, base) for one in (value if isinstance(value, list) else [value])]


def _medium(value: Any, kind: Literal["image", "video"], base: Path | None) -> MediaSource:
    """A path, bytes, or Hugging Face's ``{bytes, path}`` (the path only names the bytes where both are there)."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if data is None and not path:
            raise Refusal(f"a cell of {kind}s has neither bytes nor a path")
        value = path if data is None else data
    if isinstance(value, bytes):
        return MediaSource(kind, data=value)
    return MediaSource(kind, path=text(value, kind), base=base)


def _optional(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Refusal(f"{what} is no text")
    return str(value)


def _listed(columns: list[str]) -> str:
    return ", ".join(map(repr, columns[:30])) or "none"
