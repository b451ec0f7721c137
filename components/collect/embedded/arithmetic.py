"""Sums, differences and comparisons of handwritten digits, answered directly or written out."""

from collections.abc import Sequence

import numpy as np

from components.collect.canvas import Canvas, Painter
from components.collect.embedded.config import ArithmeticConfig, EmbeddedConfig, StyledConfig
from components.collect.embedded.sample import Maker, Sample, between
from components.collect.glyphs import LICENSE, SOURCE, load_glyphs, split_glyphs
from model.data.schema import Media, image_media, scorer

_RELATIONS = {-1: ("<", "smaller"), 0: ("=", "equal"), 1: (">", "larger")}
_QUESTIONS = {
    "sum": "Sum of the digits?",
    "difference": "First digit minus last?",
    "compare": "First digit against last: larger, smaller or equal?",
}
_MOST_WRONG = 3  # by how much a noisy result is off, at most


def make_arithmetic(config: ArithmeticConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``sum``, ``difference`` and ``compare``; held-out rows show held-out glyphs."""
    pools = split_glyphs(load_glyphs(), corpus.heldout_share, corpus.seed)
    painter = Painter(config.canvas, pools[heldout])

    def make(task: str, rng: np.random.Generator) -> Sample:
        canvas = painter.draw(rng)
        direct, noisy = draw_style(config, rng, heldout=heldout)
        if task == "compare":
            working, reference, said = _comparison(canvas.digits, rng, noisy=noisy)
            judge, mark = scorer("exact", after=":"), ":"
        else:
            working, reference, said = _calculation(task, canvas.digits, rng, noisy=noisy)
            judge, mark = scorer("numeric", after="="), " ="
        answer = worded(config, rng, said, None if direct else f"{working}{mark}", heldout=heldout)
        return Sample(_QUESTIONS[task], answer, judge, SOURCE, LICENSE, (canvas_media(canvas),), (reference,), noisy)

    return make


def draw_style(config: StyledConfig, rng: np.random.Generator, *, heldout: bool) -> tuple[bool, bool]:
    """Whether a row answers directly, and whether its result is wrong; held-out rows are direct and right."""
    direct, noisy = rng.random() < config.direct_share, rng.random() < config.noisy_share
    return direct or heldout, noisy and not heldout


def worded(config: StyledConfig, rng: np.random.Generator, said: str, working: str | None, *, heldout: bool) -> str:
    """The answer ``said`` in one of the forms that ``config`` asks for, after its ``working`` where it is written out.

    Held-out rows are plain. Nothing is drawn for a form whose share is 0: it leaves the random stream as it was.
    """
    share = config.boxed_share if working is None else config.thought_share
    plain = heldout or not share or rng.random() >= share
    if working is None:
        return said if plain else boxed(said)
    return f"{working} {said}" if plain else f"<think>{working} {said}</think>{boxed(said)}"


def boxed(answer: str) -> str:
    """The form of a final answer that scorers look for first."""
    return f"\\boxed{{{answer}}}"


def slip(result: int, rng: np.random.Generator) -> int:
    """A result near ``result`` that is wrong."""
    off = between(rng, (1, _MOST_WRONG))
    return result + off if rng.random() < 0.5 else result - off


def canvas_media(canvas: Canvas) -> Media:
    """A canvas as a medium."""
    return image_media(canvas.png, image_format="PNG", width=canvas.width, height=canvas.height)


def _calculation(task: str, digits: Sequence[int], rng: np.random.Generator, *, noisy: bool) -> tuple[str, str, str]:
    """Working, right result and stated result."""
    if task == "sum":
        working, result = " + ".join(map(str, digits)), sum(digits)
    else:
        working, result = f"{digits[0]} - {digits[-1]}", digits[0] - digits[-1]
    return working, str(result), str(slip(result, rng) if noisy else result)


def _comparison(digits: Sequence[int], rng: np.random.Generator, *, noisy: bool) -> tuple[str, str, str]:
    """The same for a comparison: "7 > 3" and "larger"."""
    order = int(np.sign(digits[0] - digits[-1]))
    stated = (order + 2 + int(rng.integers(2))) % 3 - 1 if noisy else order
    sign, word = _RELATIONS[stated]
    return f"{digits[0]} {sign} {digits[-1]}", _RELATIONS[order][1], word
