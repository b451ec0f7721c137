"""What our exports add to a foreign format so that nothing is lost on the way back; other readers pass over it."""

import math
from typing import Any

from components.collect.importers.record import MediaSource, Record, Refusal, mapping, text
from model.data.schema import MEDIA_TYPE

OWN = ("source", "license", "task", "answers", "scorer", "steps", "words")
_MEDIUM = {field.name for field in MEDIA_TYPE} - {"kind", "bytes"}


def take_own_fields(record: Record, fields: dict[str, Any]) -> Record:
    """Fill the columns of ``record`` that ``fields`` has under our names.

    Raises:
        Refusal: one of them is not of its type.
    """
    for name in ("source", "license", "task"):
        if fields.get(name) is not None:
            setattr(record, name, text(fields[name], name))
    if fields.get("answers") is not None:
        if not isinstance(fields["answers"], list):
            raise Refusal("answers is no list")
        record.answers = [text(answer, "an accepted answer") for answer in fields["answers"]]
    if fields.get("scorer") is not None:
        judge = mapping(fields["scorer"], "scorer")
        record.scorer = {name: text(judge.get(name), f"scorer.{name}") for name in ("name", "parameters")}  # type: ignore[assignment]
    if fields.get("steps") is not None:
        record.steps = [
            {"text": text(step.get("text"), "a step's text"), "label": _maybe_number(step.get("label"))}
            for step in _records(fields["steps"], "steps")
        ]
    if fields.get("words") is not None:
        record.words = [
            {"start": number(w.get("start")), "end": number(w.get("end")), "text": text(w.get("text"), "a word")}
            for w in _records(fields["words"], "words")
        ]
    return record


def number(value: Any, what: str = "a time") -> float:
    """``value`` as a finite number, or a refusal."""
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # an integer of more than 308 digits
        found = math.nan
    if not math.isfinite(found):
        raise Refusal(f"{what} is no number")
    return found


def _maybe_number(value: Any) -> float | None:
    return None if value is None else number(value, "a step's label")


def _records(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise Refusal(f"{what} is no list")
    return [mapping(item, f"an item of {what}") for item in value]


def kept_medium(value: Any) -> MediaSource:
    """A medium as our WebDataset export writes it, its bytes in a member of their own."""
    medium = mapping(value, "a medium")
    if medium.get("kind") not in ("image", "video"):
        raise Refusal("a medium's kind must be image or video")
    kept = {name: medium.get(name) for name in sorted(_MEDIUM)}
    for name in (name for name, value in kept.items() if value is not None):
        if name in ("uri", "format", "sha256", "phash"):
            if any("\ud800" <= sign <= "\udfff" for sign in text(kept[name], f"a medium's {name}")):
                raise Refusal(f"a medium's {name} holds half a surrogate pair")
        elif name in ("width", "height"):
            if type(kept[name]) is not int or not 0 <= kept[name] < 1 << 31:
                raise Refusal(f"a medium's {name} is no number of pixels")
        else:
            kept[name] = number(kept[name], f"a medium's {name}")
    return MediaSource(medium["kind"], kept=kept)
