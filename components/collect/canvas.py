"""Canvases: glyphs at random places and magnifications on a noisy grey background.

Every digit lies somewhere in a cell of its own of a coarse grid, so the order of reading (row by row, each from left to
right) is never in doubt.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from components.collect.embedded.config import GLYPH_SIDE, CanvasConfig
from components.collect.glyphs import Glyphs

Box = tuple[int, int, int, int]

_PAPER = (0, 80)  # grey levels of the background
_INK = (180, 255)
_NOISE = (0, 12)  # amplitude of the uniform noise, in grey levels
_FAINTEST = 32  # ink below this (of 255) does not count for the box
BOX_STEP = 20  # thousandths; 1.1 pixels of a 56-pixel canvas


@dataclass(frozen=True)
class Canvas:
    """A drawn canvas.

    Attributes:
        png: encoded grey image.
        width, height: pixels.
        digits: in the order of reading.
        boxes: (left, top, right, bottom) of each digit's ink in pixels, right and bottom exclusive.
    """

    png: bytes
    width: int
    height: int
    digits: tuple[int, ...]
    boxes: tuple[Box, ...]

    def box_text(self, index: int) -> str:
        """Box of one digit as four integers in thousandths of the width and height, in steps of BOX_STEP.

        Three digits each, so that a place in the answer always has the same meaning: "020 340 180 500".
        """
        sides = (self.width, self.height, self.width, self.height)
        steps = [round(pixel / side * (1000 / BOX_STEP)) for pixel, side in zip(self.boxes[index], sides, strict=True)]
        return " ".join(f"{min(step * BOX_STEP, 1000 - BOX_STEP):03d}" for step in steps)


class Painter:
    """Draws canvases from one pool of glyphs; magnified glyphs are made once and kept."""

    def __init__(self, config: CanvasConfig, glyphs: Glyphs) -> None:
        self._config = config
        self._glyphs = glyphs
        self._patches: dict[tuple[int, int], np.ndarray] = {}
        self._sizes = (round(GLYPH_SIDE * config.scale[0]), round(GLYPH_SIDE * config.scale[1]))

    def draw(
        self,
        rng: np.random.Generator,
        count: int | None = None,
        digits: Sequence[int] | None = None,
        within: Sequence[int] | None = None,
    ) -> Canvas:
        """Draw a canvas with ``count`` digits (by default a random number of them), or with these ``digits``.

        ``within`` are the cells they may lie in, counted in the order of reading; all when None.
        """
        config = self._config
        wide = rng.random() < config.wide_share
        width, height = config.canvas * (2 if wide else 1), config.canvas
        if digits is not None:
            chosen = [int(rng.choice(self._glyphs.of(digit))) for digit in digits]
            count = len(chosen)
        else:
            if count is None:
                count = int(rng.integers(config.digits[0], config.digits[1] + 1))
            chosen = rng.integers(len(self._glyphs), size=count).tolist()
        smallest, largest = self._sizes
        sizes = rng.integers(smallest, largest + 1, size=count).tolist()
        patches = [self.patch(index, size) for index, size in zip(chosen, sizes, strict=True)]
        columns = config.cells * (2 if wide else 1)
        places = columns * config.cells if within is None else within
        cells = sorted(rng.choice(places, size=count, replace=False).tolist())
        boxes = [
            _place(rng, patch.shape, divmod(cell, columns), config.canvas / config.cells)
            for patch, cell in zip(patches, cells, strict=True)
        ]
        image = _paint(rng, patches, boxes, width, height)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        digits = tuple(int(self._glyphs.labels[index]) for index in chosen)
        return Canvas(buffer.getvalue(), width, height, digits, tuple(boxes))

    def patch(self, index: int, size: int) -> np.ndarray:
        """Glyph ``index`` magnified to ``size`` pixels and cut to its ink: float32 [H, W] in [0, 1]."""
        patch = self._patches.get((index, size))
        if patch is None:
            glyph = Image.fromarray(self._glyphs.images[index])
            ink = np.asarray(glyph.resize((size, size), Image.Resampling.BICUBIC))
            rows, columns = np.nonzero(ink.max(1) >= _FAINTEST)[0], np.nonzero(ink.max(0) >= _FAINTEST)[0]
            patch = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
            self._patches[index, size] = patch
        return patch


def _place(rng: np.random.Generator, shape: tuple[int, ...], cell: tuple[int, int], side: float) -> Box:
    """Box of a patch of ``shape`` at a random place in a cell (row, column) of ``side`` pixels."""
    (rows, columns), (row, column) = shape, cell
    top = round(row * side) + int(rng.integers(int(side) - rows + 1))
    left = round(column * side) + int(rng.integers(int(side) - columns + 1))
    return (left, top, left + columns, top + rows)


def _paint(
    rng: np.random.Generator, patches: list[np.ndarray], boxes: list[Box], width: int, height: int
) -> np.ndarray:
    """Blend the patches onto a background and add noise: uint8 [H, W]."""
    paper = rng.integers(_PAPER[0], _PAPER[1] + 1)
    amplitude = rng.integers(_NOISE[0], _NOISE[1] + 1)
    image = np.full((height, width), paper, np.float32)
    for patch, (left, top, right, bottom) in zip(patches, boxes, strict=True):
        ink = rng.integers(_INK[0], _INK[1] + 1)
        image[top:bottom, left:right] += patch * (ink - paper)
    image += rng.integers(-amplitude, amplitude + 1, size=image.shape, dtype=np.int8)
    return image.clip(0, 255).astype(np.uint8)
