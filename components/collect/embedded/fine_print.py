"""Handwritten digits in small print: what a compressed tile cannot resolve, alone or beside a blank half."""

import numpy as np

from components.collect.canvas import Painter
from components.collect.embedded.arithmetic import canvas_media
from components.collect.embedded.config import EmbeddedConfig, FinePrintConfig
from components.collect.embedded.sample import Maker, Sample
from components.collect.glyphs import LICENSE, SOURCE, load_glyphs, split_glyphs
from model.data.schema import scorer

# The words of the families of large digits: only the image says how fine the print is.
_QUESTIONS = {"transcribe_fine": "Transcribe.", "read_fine": "Which digits?", "read_sparse": "Which digits?"}


def make_fine_print(config: FinePrintConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``transcribe_fine``, ``read_fine`` and ``read_sparse`` (a wide canvas of which one half is blank)."""
    glyphs = split_glyphs(load_glyphs(), corpus.heldout_share, corpus.seed)[heldout]
    square = Painter(config.canvas, glyphs)
    wide = Painter(config.canvas.model_copy(update={"wide_share": 1.0}), glyphs)

    def make(task: str, rng: np.random.Generator) -> Sample:
        sparse = task == "read_sparse"
        cells = printed_cells(config, rng, halves=2 if sparse else 1)
        canvas = (wide if sparse else square).draw(rng, within=cells)
        answer = " ".join(map(str, canvas.digits))
        return Sample(_QUESTIONS[task], answer, scorer("exact"), SOURCE, LICENSE, (canvas_media(canvas),))

    return make


def printed_cells(config: FinePrintConfig, rng: np.random.Generator, *, halves: int) -> list[int]:
    """Cells of the lines that hold the digits: all on one of ``halves`` square halves, counted in order of reading."""
    side = config.canvas.cells
    first_line = config.lines * int(rng.integers(side // config.lines))
    first_column = side * int(rng.integers(halves))
    lines = range(first_line, first_line + config.lines)
    return [line * side * halves + column for line in lines for column in range(first_column, first_column + side)]
