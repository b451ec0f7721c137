"""The funnel: rows in and out of every operator, examples of what it rejected, and statistics of what remained."""

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from components.curate.engine import Outcome
from components.curate.recipe import Operator, Statistics
from components.curate.text_operators import MEASURES, spoken
from model.data.errors import InputError
from model.data.schema import Row
from model.flash.images import read_image

EXAMPLES = 6
_PICTURES = 2
_SIDE = 144
_TEXT = 240
_BUDGET = 1_500_000  # characters of pictures in a page; later examples go without


def count_rows(outcome: Outcome, recipe: Sequence[Operator], written: Mapping[str, int]) -> dict[str, Any]:
    """Rows in and out in all, by category of the reasons, and operator by operator: the manifest's ``funnel``.

    ``rows_in + copied`` is the sum of ``rejected`` and ``rows_out``.
    """
    by_operator = Counter(number for number in outcome.rejected_by if number is not None)
    rejected: Counter[str] = Counter()
    operators, left = [], len(outcome.rows)
    for number, section in enumerate(recipe):
        rejected[section.category] += by_operator[number]
        out = left - by_operator[number]
        operators.append({"op": section.op, "rows_in": left, "rejected": by_operator[number], "rows_out": out})
        left = out
    # An operator after the mixture may have rejected a row that was to be copied.
    copied = sum(times - 1 for place, times in outcome.copies.items() if outcome.rejected_by[place] is None)
    return {
        "rows_in": len(outcome.rows),
        "rejected": dict(rejected),
        "copied": copied,
        "operators": operators,
        "rows_out": dict(written),
    }


def packing_statistics(outcome: Outcome, mine: Sequence[bool]) -> dict[str, Any]:
    """Histograms of characters, words and tiles over the rows that are written: the manifest's ``statistics``.

    A bin is named by its upper end: "8" counts values from 5 to 8, "0" counts zeros. Tokens are not counted: a dataset
    knows no tokenizer.
    """
    places = [place for place in outcome.rows.sound() if mine[place]]
    found = {}
    for name in MEASURES:
        values = outcome.rows.fact(name)
        bins: Counter[int] = Counter()
        for place in places:
            bins[1 << (values[place] - 1).bit_length() if values[place] else 0] += outcome.copies.get(place, 1)
        total = sum(values[place] * outcome.copies.get(place, 1) for place in places)
        found[name.removeprefix("spaced_")] = {"total": total, "bins": {str(edge): bins[edge] for edge in sorted(bins)}}
    return found


def has_statistics(recipe: Sequence[Operator]) -> bool:
    """Whether the recipe gathers what ``packing_statistics`` counts."""
    return any(isinstance(section, Statistics) for section in recipe)


@dataclass
class Example:
    """A rejected row as it is shown; ``instead`` are the pictures of the earlier row that it repeats."""

    row_id: str
    reason: str
    text: str
    pictures: list[str]
    instead: list[str] = field(default_factory=list)


@dataclass
class Examples:
    """The first rejects of each operator, gathered while the rows are read for writing."""

    places: dict[int, list[int]]
    originals: dict[int, int]
    shown: dict[int, Example] = field(default_factory=dict)
    _budget: int = _BUDGET

    @classmethod
    def of(cls, outcome: Outcome) -> "Examples":
        """Choose places: the first of each operator, and the earlier rows that they repeat."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, number in enumerate(outcome.rejected_by):
            if number is not None and len(places[number]) < EXAMPLES:
                places[number].append(place)
        named = {}
        for place in (place for chosen in places.values() for place in chosen):
            _, found, row_id = (outcome.rows.reasons[place] or "").partition(": of ")
            if found:
                named[row_id] = place
        ids = outcome.rows.fact("id")
        first = {row_id: place for place, row_id in reversed(list(enumerate(ids))) if row_id in named}
        repeats = {place: row_id for row_id, place in named.items()}
        return cls(dict(places), {place: first[row_id] for place, row_id in repeats.items() if row_id in first})

    def wanted(self) -> set[int]:
        """Every place that ``see`` needs."""
        return {place for chosen in self.places.values() for place in chosen} | set(self.originals.values())

    def see(self, place: int, row: Row, reason: str | None) -> None:
        """Take a row of ``wanted`` in; rows come in the order of their places."""
        pictures = [self._picture(medium["bytes"]) for medium in row["media"][:_PICTURES] if medium["kind"] == "image"]
        text = spoken([turn for turn in row["messages"] if turn and turn.get("content")])
        self.shown[place] = Example(row["id"], reason or "", _cut(text), [one for one in pictures if one])

    def by_operator(self) -> dict[int, list[Example]]:
        """The examples of each operator, with the pictures of what they repeat."""
        for place, original in self.originals.items():
            if place in self.shown and original in self.shown:
                self.shown[place].instead = self.shown[original].pictures
        return {
            number: [self.shown[place] for place in chosen if place in self.shown]
            for number, chosen in self.places.items()
        }

    def _picture(self, data: bytes | None) -> str:
        """A small JPEG as a data URI; nothing where the image cannot be decoded or the page is full."""
        try:
            image = read_image(data or b"")
        except InputError:
            return ""
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=None)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        if len(uri) > self._budget:
            return ""
        self._budget -= len(uri)
        return uri


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."
