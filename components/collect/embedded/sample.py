"""What a family draws: one question with its answer, its scorer and its media, before it becomes a row."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from model.data.schema import Media, Scorer, image_media

OURS = "Apache-2.0"
"""Licence of what this repository makes up itself."""


@dataclass(frozen=True)
class Sample:
    """One drawn row.

    Attributes:
        question: the user's text, without placeholders.
        answer: what the assistant says: a demonstration.
        judge: the scorer.
        source, license: of the material.
        media: in the order of their placeholders.
        references: what the scorer accepts; the answer itself where none are given.
        noisy: the demonstration is wrong on purpose.
    """

    question: str
    answer: str
    judge: Scorer
    source: str
    license: str
    media: tuple[Media, ...] = ()
    references: tuple[str, ...] = ()
    noisy: bool = False


# Draws one sample of a task, or None when what was drawn has no such question: then it is drawn again.
Maker = Callable[[str, np.random.Generator], Sample | None]


def png_media(image: Image.Image) -> Media:
    """A drawn image as a medium."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return image_media(buffer.getvalue(), image_format="PNG", width=image.width, height=image.height)


def between(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    """A whole number from the first to the last of ``bounds``."""
    return int(rng.integers(bounds[0], bounds[1] + 1))


def pick(rng: np.random.Generator, things: "list[str] | tuple[str, ...]") -> str:
    """One of ``things``."""
    return things[int(rng.integers(len(things)))]


def thousandths(pixels: tuple[float, ...], width: int, height: int) -> tuple[int, ...]:
    """x and y in turn, in thousandths of the width and height, at most 999."""
    sides = (width, height) * (len(pixels) // 2)
    return tuple(min(round(pixel / side * 1000), 999) for pixel, side in zip(pixels, sides, strict=True))
