"""Digits in small print, which a compressed tile cannot resolve: alone, beside what it can, under columns."""

import io

import numpy as np
from PIL import Image

from components.collect.canvas import Canvas, Painter
from components.collect.embedded.arithmetic import canvas_media
from components.collect.embedded.config import MOST_COLUMNS, EmbeddedConfig, FinePrintConfig
from components.collect.embedded.sample import Maker, Sample, png_media
from components.collect.glyphs import LICENSE, SOURCE, load_glyphs, split_glyphs
from model.data.schema import Media, scorer

# The words of the families of large digits: only the image says how fine the print is.
_QUESTIONS = {
    "transcribe_fine": "Transcribe.",
    "read_fine": "Which digits?",
    "read_sparse": "Which digits?",
    "read_beside": "Which digits?",
    "tallest_label": "Tallest column?",
}
_FEWEST_COLUMNS = 2
_STEPS = 4  # heights a column can have
_COLUMN_INK = (100, 170)  # grey levels, under those of digits


def make_fine_print(config: FinePrintConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``transcribe_fine``, ``read_fine``, ``read_sparse`` (a wide canvas of which one half is blank),
    ``read_beside`` (a half with large digits and one with small print, read one after the other) and ``tallest_label``
    (a chart of columns, whose labels are small print)."""
    glyphs = split_glyphs(load_glyphs(), corpus.heldout_share, corpus.seed)[heldout]
    square = Painter(config.canvas, glyphs)
    wide = Painter(config.canvas.model_copy(update={"wide_share": 1.0}), glyphs)
    large = Painter(config.large, glyphs)

    def beside(rng: np.random.Generator) -> tuple[Media, str]:
        halves = [large.draw(rng), square.draw(rng, within=printed_cells(config, rng, halves=1))]
        if rng.random() < 0.5:
            halves.reverse()
        image = Image.fromarray(np.concatenate([_grey(half) for half in halves], axis=1))
        return png_media(image), _read(*halves)

    def columns(rng: np.random.Generator) -> tuple[Media, str]:
        cells, count = config.canvas.cells, int(rng.integers(_FEWEST_COLUMNS, MOST_COLUMNS + 1))
        labels = rng.choice(10, size=count, replace=False)
        # The last line of the grid holds the labels; the columns stand on it.
        canvas = square.draw(rng, digits=labels.tolist(), within=range(cells * (cells - 1), cells * cells))
        heights = rng.choice(_STEPS, size=count, replace=False) + 1
        image = draw_columns(_grey(canvas), canvas, cells, heights, int(rng.integers(*_COLUMN_INK)))
        return png_media(Image.fromarray(image)), str(canvas.digits[int(heights.argmax())])

    def print_alone(task: str, rng: np.random.Generator) -> tuple[Media, str]:
        sparse = task == "read_sparse"
        cells = printed_cells(config, rng, halves=2 if sparse else 1)
        canvas = (wide if sparse else square).draw(rng, within=cells)
        return canvas_media(canvas), _read(canvas)

    def make(task: str, rng: np.random.Generator) -> Sample:
        drawn = {"read_beside": beside, "tallest_label": columns}.get(task)
        medium, answer = print_alone(task, rng) if drawn is None else drawn(rng)
        return Sample(_QUESTIONS[task], answer, scorer("exact"), SOURCE, LICENSE, (medium,))

    return make


def printed_cells(config: FinePrintConfig, rng: np.random.Generator, *, halves: int) -> list[int]:
    """Cells of the lines that hold the digits: all on one of ``halves`` square halves, counted in order of reading."""
    side = config.canvas.cells
    first_line = config.lines * int(rng.integers(side // config.lines))
    first_column = side * int(rng.integers(halves))
    lines = range(first_line, first_line + config.lines)
    return [line * side * halves + column for line in lines for column in range(first_column, first_column + side)]


def draw_columns(image: np.ndarray, canvas: Canvas, cells: int, heights: np.ndarray, ink: int) -> np.ndarray:
    """Columns on the last line of the grid, each above one digit of the canvas: uint8 [H, W].

    Args:
        image: the canvas, grey [H, W].
        canvas: its digits all lie on the last line.
        cells: a side of the grid.
        heights: of each column, in steps; ``_STEPS`` fill what is above the labels.
        ink: grey level.
    """
    drawn, side = image.copy(), canvas.width // cells
    floor = side * (cells - 1)
    for (left, _, _, _), height in zip(canvas.boxes, heights, strict=True):
        first = left // side * side
        drawn[floor - floor * int(height) // _STEPS : floor, first + side // 5 : first + side - side // 5] = ink
    return drawn


def _grey(canvas: Canvas) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(canvas.png)))


def _read(*canvases: Canvas) -> str:
    return " ".join(str(digit) for canvas in canvases for digit in canvas.digits)
