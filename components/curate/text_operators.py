"""Operators on texts and labels: text-image ratio, licences, statistics for packing."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import daft
from daft import DataType, Expression, Series, col

from components.curate.recipe import Licences, Statistics, TextImageRatio
from model.data.schema import PLACEHOLDERS
from model.flash.images import Tiling, count_tiles

MEASURES = ("characters", "spaced_words", "tiles")
"""Facts of ``statistics``."""
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS.values())))
_REASON = DataType.struct({"reason": DataType.string()})


def text_image_ratio(section: TextImageRatio) -> Expression:
    """Rows with images that have too few or too many characters of text for each."""
    return _ratio(col("media"), col("messages"), col("reason"), section)


def licences(section: Licences) -> Expression:
    """Rows under a licence that is not on the list."""
    return _licence(col("license"), section)


def statistics(section: Statistics) -> Expression:
    """Facts ``characters``, ``spaced_words`` and ``tiles`` of each row."""
    return _statistics(col("messages"), col("width"), col("height"), col("reason"), section)


def spoken(messages: Sequence[Mapping[str, Any]]) -> str:
    """The texts of a conversation without placeholders, one turn a line, white space at the ends removed."""
    return "\n".join(_PLACEHOLDER.sub("", message["content"]).strip() for message in messages)


def clip_bounds_of(media: Sequence[Mapping[str, Any]]) -> list[tuple[float | None, ...]]:
    """Start, end and rate of each video of a row: two clips of one video are two things, whose bytes are the same."""
    return [(m["start"], m["end"], m["fps"]) for m in media if m["kind"] == "video"]


@daft.func.batch(return_dtype=_REASON, use_process=False)
def _ratio(media: Series, messages: Series, reason: Series, section: TextImageRatio) -> list[dict[str, Any]]:
    found = []
    for row, turns, earlier in zip(media.to_pylist(), messages.to_pylist(), reason.to_pylist(), strict=True):
        images = 0 if earlier is not None else sum(medium["kind"] == "image" for medium in row)
        ratio = len(spoken(turns)) / images if images else section.low
        why = None
        if ratio < section.low:
            why = f"{ratio:.1f} characters of text an image; the least is {section.low:g}"
        elif ratio > section.high:
            why = f"{ratio:.1f} characters of text an image; the most is {section.high:g}"
        found.append({"reason": why})
    return found


@daft.func.batch(return_dtype=_REASON, use_process=False)
def _licence(licence: Series, section: Licences) -> list[dict[str, Any]]:
    allowed = {name.casefold() for name in section.allowed}
    return [
        {"reason": None if (name or "").strip().casefold() in allowed else f"{name} is not on the list"}
        for name in licence.to_pylist()
    ]


_COUNTS = DataType.struct({"reason": DataType.string()} | {name: DataType.int64() for name in MEASURES})


@daft.func.batch(return_dtype=_COUNTS, use_process=False)
def _statistics(
    messages: Series, width: Series, height: Series, reason: Series, section: Statistics
) -> list[dict[str, Any]]:
    tiling = Tiling(section.tile, max_tiles=section.max_tiles)
    columns = (column.to_pylist() for column in (messages, width, height, reason))
    found = []
    for turns, widths, heights, earlier in zip(*columns, strict=True):
        if earlier is not None:
            found.append(dict.fromkeys(("reason", *MEASURES)))
            continue
        said = spoken(turns)
        sides = [(w, h) for w, h in zip(widths, heights, strict=True) if w and h]
        shared = tiling.shared_by(len(sides))
        tiles = sum(count_tiles(w, h, shared) for w, h in sides)
        found.append({"reason": None, "characters": len(said), "spaced_words": len(said.split()), "tiles": tiles})
    return found
