"""Questions about two canvases of handwritten digits: which shows more, which the largest, whether they agree."""

import numpy as np

from components.collect.canvas import Painter
from components.collect.embedded.arithmetic import canvas_media
from components.collect.embedded.config import ComparisonConfig, EmbeddedConfig
from components.collect.embedded.sample import Maker, Sample
from components.collect.glyphs import LICENSE, SOURCE, load_glyphs, split_glyphs
from model.data.schema import scorer

_QUESTIONS = {
    "compare_count": "Which image shows more digits: first, second or same?",
    "compare_largest": "Which image shows the largest digit: first, second or same?",
    "same_digits": "Do both show the same digits in the same order?",
}


def make_comparison(config: ComparisonConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``compare_count``, ``compare_largest`` and ``same_digits``; held-out rows show held-out glyphs."""
    painter = Painter(config.canvas, split_glyphs(load_glyphs(), corpus.heldout_share, corpus.seed)[heldout])

    def make(task: str, rng: np.random.Generator) -> Sample:
        first = painter.draw(rng)
        digits = _other(first.digits, rng) if task == "same_digits" else None
        second = painter.draw(rng, digits=digits)
        if task == "same_digits":
            answer = "yes" if first.digits == second.digits else "no"
        else:
            key = len if task == "compare_count" else max
            ours, theirs = key(first.digits), key(second.digits)
            answer = "first" if ours > theirs else "second" if theirs > ours else "same"
        media = (canvas_media(first), canvas_media(second))
        return Sample(_QUESTIONS[task], answer, scorer("exact"), SOURCE, LICENSE, media)

    return make


def _other(digits: tuple[int, ...], rng: np.random.Generator) -> list[int]:
    """The same digits, or with one of them changed: half of the rows each."""
    other = list(digits)
    if rng.random() < 0.5:
        place = int(rng.integers(len(other)))
        other[place] = (other[place] + 1 + int(rng.integers(9))) % 10
    return other
