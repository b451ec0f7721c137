"""InternVL3.5's Parquet of queries for online RL, in verl's columns.

Source: reference InternVL3.5, section 2.7: ``images [{path | bytes}], prompt [{role, content}], extra_info {question},
reward_model {ground_truth}, data_source``. The reference answer stands as the assistant's message.
"""

from collections.abc import Iterator
from typing import Any

from components.collect.importers.config import InternvlRlSource
from components.collect.importers.conversations import read_turns
from components.collect.importers.record import (
    MediaSource,
    Record,
    Refusal,
    answer_texts,
    mapping,
    parsed,
    place_media,
    text,
)
from components.collect.importers.root import SourceRoot
from components.collect.importers.tables import parquet_columns, parquet_rows
from model.data.errors import InputError
from model.data.schema import Message

DEFAULT_TASK = "query"
_NEEDED = "reward_model"
_USED = ("id", "images", "prompt", "extra_info", _NEEDED, "data_source", "split")


def records(source: InternvlRlSource, root: SourceRoot, notes: dict[str, Any]) -> Iterator[Record]:
    """Every row of every file; paths are relative to the source's directory.

    Raises:
        InputError: a file is damaged, or has no column ``reward_model``.
    """
    for file in root.files(lambda name: name.endswith(".parquet"), source.file):
        present = parquet_columns(root, file)
        if _NEEDED not in present or not {"prompt", "extra_info"} & set(present):
            raise InputError(f"{file}: an RL Parquet has the columns reward_model, and prompt or extra_info")
        yield from parsed(parquet_rows(root, file, [name for name in _USED if name in present]), _record)


def _record(row: dict[str, Any], place: str) -> Record:
    reward = mapping(row.get(_NEEDED), _NEEDED)
    answers = answer_texts(reward.get("ground_truth"), "reward_model.ground_truth")
    images = row.get("images") or []
    if not isinstance(images, list):
        raise Refusal("images is no list")
    media = [_image(image) for image in images]
    messages = _asked(row)
    place_media(messages, media, several=True)
    messages.append({"role": "assistant", "content": answers[0]})
    identity, origin = row.get("id"), row.get("data_source")
    return Record(
        place,
        id=None if identity is None else str(identity),
        split=row.get("split"),
        messages=messages,
        media=media,
        answers=answers,
        task=None if origin is None else text(origin, "data_source"),
    )


def _asked(row: dict[str, Any]) -> list[Message]:
    """``prompt`` where it is there: it has the system prompt and the answer's format; else the bare question."""
    if row.get("prompt"):
        messages = read_turns(row["prompt"])
        if messages[-1]["role"] != "user":
            raise Refusal("prompt does not end with the user's turn")
        return messages
    extra = mapping(row.get("extra_info"), "extra_info")
    return [{"role": "user", "content": text(extra.get("question"), "extra_info.question")}]


def _image(value: Any) -> MediaSource:
    image = mapping(value, "an image")
    if (data := image.get("bytes")) is not None:
        if not isinstance(data, bytes):
            raise Refusal("an image's bytes are not bytes")
        return MediaSource("image", data=data)
    return MediaSource("image", path=text(image.get("path"), "an image's path"))
