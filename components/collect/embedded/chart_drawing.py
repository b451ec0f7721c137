"""Charts on pixels: axis, grid, marks, labels."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from components.collect.embedded.fonts import BOLD, SANS, font
from components.collect.embedded.tables import written

_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d")
_TICKS = 4
_TITLE, _TEXT = 12, 10  # pixels per em
_INK, _GRID, _PAPER = "#222222", "#dddddd", "white"


def axis_end(values: Sequence[float]) -> float:
    """Where the axis, which begins at 0, ends: 1, 2, 2.5, 4, 5, 6, 8 or 10 times a power of ten, above all values."""
    top = max(values)
    if top <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(top))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 6, 8, 10) if step * power >= top * (1 - 1e-9))


def draw_chart(
    title: str,
    labels: Sequence[str],
    values: Sequence[float],
    kind: str,
    labelled: bool,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Image.Image:
    """A chart of ``kind`` bars (across), columns or line; ``labelled`` prints the values at the marks."""
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((size[0] // 2, 4), title, fill=_INK, font=font(BOLD, _TITLE), anchor="ma")
    colour = _COLOURS[int(rng.integers(len(_COLOURS)))]
    end = axis_end(values)
    across = kind == "bars"
    # Left, top, right, bottom of the plot; bars across need room for their labels, the others for the numbers.
    room = max(font(SANS, _TEXT).getlength(label) for label in labels) + 8 if across else _axis_room(end)
    plot = (round(room), 32, size[0] - 34 if across and labelled else size[0] - 12, size[1] - 22)
    _grid(draw, plot, end, across=across)
    points = [_mark(draw, plot, number, len(labels), value / end, kind, colour) for number, value in enumerate(values)]
    if kind == "line":
        draw.line(points, fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    text = font(SANS, _TEXT)
    for number, (label, value, (x, y)) in enumerate(zip(labels, values, points, strict=True)):
        middle = _middle(plot, number, len(labels), across=across)
        where, anchor = ((plot[0] - 4, middle), "rm") if across else ((middle, plot[3] + 5), "ma")
        draw.text(where, label, fill=_INK, font=text, anchor=anchor)
        if labelled:
            where, anchor = ((x + 3, y), "lm") if across else ((x, y - 5), "mb")
            draw.text(where, written(value), fill=_INK, font=text, anchor=anchor, stroke_width=2, stroke_fill=_PAPER)
    return image


def _axis_room(end: float) -> float:
    return max(font(SANS, _TEXT).getlength(written(end * tick / _TICKS)) for tick in range(_TICKS + 1)) + 10


def _grid(draw: ImageDraw.ImageDraw, plot: tuple[int, int, int, int], end: float, *, across: bool) -> None:
    left, top, right, bottom = plot
    for tick in range(_TICKS + 1):
        share, number = tick / _TICKS, written(end * tick / _TICKS)
        if across:
            x = left + share * (right - left)
            draw.line((x, top, x, bottom), fill=_GRID)
            draw.text((x, bottom + 5), number, fill=_INK, font=font(SANS, _TEXT), anchor="ma")
        else:
            y = bottom - share * (bottom - top)
            draw.line((left, y, right, y), fill=_GRID)
            draw.text((left - 4, y), number, fill=_INK, font=font(SANS, _TEXT), anchor="rm")


def _middle(plot: tuple[int, int, int, int], number: int, count: int, *, across: bool) -> float:
    first, last = (plot[1], plot[3]) if across else (plot[0], plot[2])
    return first + (number + 0.5) / count * (last - first)


def _mark(
    draw: ImageDraw.ImageDraw,
    plot: tuple[int, int, int, int],
    number: int,
    count: int,
    height: float,
    kind: str,
    colour: str,
) -> tuple[float, float]:
    """Draw a bar or a column of ``height`` (share of the axis); where its end, or the line's point, is."""
    left, top, right, bottom = plot
    middle = _middle(plot, number, count, across=kind == "bars")
    if kind == "bars":
        half, x = 0.35 * (bottom - top) / count, left + height * (right - left)
        draw.rectangle((left, middle - half, x, middle + half), fill=colour)
        return x, middle
    half, y = 0.35 * (right - left) / count, bottom - height * (bottom - top)
    if kind == "columns":
        draw.rectangle((middle - half, y, middle + half, bottom), fill=colour)
    return middle, y
