"""What a reader gives: one record of the source, its media not yet loaded, or the reason why it can be no row."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.data.schema import IMAGE_PLACEHOLDER, PLACEHOLDERS, Message, Scorer, Step, Word

HELDOUT_NAMES = frozenset({"heldout", "test", "validation", "valid", "val", "dev", "eval"})
TRAIN_NAMES = frozenset({"train", "training"})


class Refusal(Exception):
    """Why a record can be no row, in one line."""


@dataclass
class MediaSource:
    """Where an image or video is: ``data`` itself, or a ``path`` relative to ``base`` (None: the source's directory).

    ``start``, ``end`` (seconds) and ``fps`` as in a row's medium; ``kept`` holds what an export of ours knows about it.
    """

    kind: Literal["image", "video"]
    path: str | None = None
    data: bytes | None = None
    base: Path | None = None
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass
class Record:
    """One record. Fields that are None take the source's defaults.

    Attributes:
        place: file and line, row or key: unique in the source.
        refused: why it can be no row.
        split: as the source names it.
        copies: rows to make of it (InternVL's ``repeat_time``); the part after the point is a share of the records.
    """

    place: str
    refused: str | None = None
    id: str | None = None
    split: str | None = None
    messages: list[Message] = field(default_factory=list)
    media: list[MediaSource] = field(default_factory=list)
    answers: list[str] | None = None
    task: str | None = None
    source: str | None = None
    license: str | None = None
    scorer: Scorer | None = None
    chosen: str | None = None
    rejected: str | None = None
    steps: list[Step] | None = None
    words: list[Word] | None = None
    copies: float = 1.0


def parsed(values: Iterable[tuple[str, Any]], parse: Callable[[Any, str], Record]) -> Iterator[Record]:
    """A record for each (place, value); a value that is a ``Refusal``, or that ``parse`` refuses, stays a refusal."""
    for place, value in values:
        try:
            if isinstance(value, Refusal):
                raise value
            record = parse(value, place)
        except Refusal as refusal:
            record = Record(place, refused=str(refusal))
        yield record


def mapping(value: Any, what: str) -> dict[str, Any]:
    """``value`` as a JSON object, or a refusal."""
    if not isinstance(value, dict):
        raise Refusal(f"{what} is no object with keys")
    return value


def text(value: Any, what: str) -> str:
    """``value`` as text, or a refusal."""
    if not isinstance(value, str):
        raise Refusal(f"{what} is missing" if value is None else f"{what} is no text")
    return value


def optional_text(record: dict[str, Any], key: str) -> str | None:
    """The text under ``key``; None where there is none."""
    value = record.get(key)
    return None if value is None else text(value, key)


def given_id(record: dict[str, Any]) -> str | None:
    """The record's own id: text or a number."""
    value = record.get("id")
    return str(value) if isinstance(value, str | int) and str(value).strip() else None


def answer_texts(value: Any, what: str) -> list[str]:
    """The accepted answers in a cell: a text, a number, or a list of these; without repetitions."""
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(one, str | int | float) for one in found):
        raise Refusal(f"{what} is missing" if value in (None, []) else f"{what} is neither text nor a list of texts")
    return list(dict.fromkeys(str(one) for one in found))


def place_media(messages: list[Message], media: list[MediaSource], *, several: bool = False) -> None:
    """Put the placeholders before the first question where no message has any.

    Args:
        several: do so for any number of media; otherwise for a single one, as InternVL's own reader does.
    """
    users = [message for message in messages if message["role"] == "user"]
    shown = sum(message["content"].count(word) for message in messages for word in PLACEHOLDERS.values())
    if shown or not users or not media or (len(media) > 1 and not several):
        return
    users[0]["content"] = "".join(f"{PLACEHOLDERS[one.kind]}\n" for one in media) + users[0]["content"]


def images_at(paths: Any, base: Path | None, what: str = "image") -> list[MediaSource]:
    """The images of an ``image`` field: a path or a list of paths; none where it is missing or empty."""
    if paths is None or paths == "":
        return []
    listed = paths if isinstance(paths, list) else [paths]
    return [MediaSource("image", path=text(path, what), base=base) for path in listed]


def question(content: str, media: list[MediaSource], answer: str, system: str | None = None) -> list[Message]:
    """The messages of one question; media stand before it where its text does not place them."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    place_media(messages, media, several=True)
    return messages


def leading_images(content: str) -> tuple[int, str]:
    """Number of ``<image>`` at the start of a text, and the text after them."""
    count, rest = 0, content
    while rest.lstrip().startswith(IMAGE_PLACEHOLDER):
        rest = rest.lstrip()[len(IMAGE_PLACEHOLDER) :]
        count += 1
    return count, rest.lstrip("\n") if count else content
