"""The embedded corpus: rows of five task families about canvases of handwritten digits."""

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np

from components.collect.canvas import Canvas, Painter
from components.collect.config import DigitsConfig, Family
from components.collect.glyphs import LICENSE, SOURCE, load_glyphs, split_glyphs
from model.data.schema import IMAGE_PLACEHOLDER, Row, Scorer, image_media, scorer

FAMILIES: tuple[Family, ...] = get_args(Family)

# A question, the answer, the scorer.
Exchange = tuple[str, str, Scorer]


def digit_rows(config: DigitsConfig) -> tuple[Iterator[Row], Iterator[Row]]:
    """Training rows and held-out rows, family by family; each family has its own random stream.

    Of the two sets, no glyph is in both. Row ``i`` of a family is the same whatever the number of rows.
    """
    train, heldout = split_glyphs(load_glyphs(), config.heldout_glyph_share, config.seed)
    counts = train_counts(config)
    return (
        _rows(config, Painter(config, train), "train", counts),
        _rows(config, Painter(config, heldout), "heldout", dict.fromkeys(FAMILIES, config.heldout)),
    )


def train_counts(config: DigitsConfig) -> dict[Family, int]:
    """Training rows of each family."""
    even = {family: config.transcriptions if family == "transcribe" else config.questions for family in FAMILIES}
    return {family: round(rows * config.mix.get(family, 1.0)) for family, rows in even.items()}


def _rows(config: DigitsConfig, painter: Painter, split: str, counts: dict[Family, int]) -> Iterator[Row]:
    others = {"transcribe": config.boxed_share, "read": config.transcribe_share}
    for number, family in enumerate(FAMILIES):
        rng = np.random.default_rng([config.seed, 1 + (split == "heldout"), number])
        for index in range(counts[family]):
            canvas = painter.draw(rng)
            # Held-out rows are always the plain ones: they are what is scored.
            other = split == "train" and rng.random() < others.get(family, 0.0)
            exchange = _OTHERS[family](canvas, rng) if other else _EXCHANGES[family](canvas, rng)
            while exchange is None:
                canvas = painter.draw(rng)
                exchange = _EXCHANGES[family](canvas, rng)
            yield _row(f"digits-{split}-{family}-{index:06d}", family, canvas, exchange)


def _row(row_id: str, family: Family, canvas: Canvas, exchange: Exchange) -> Row:
    question, answer, judge = exchange
    return {
        "id": row_id,
        "source": SOURCE,
        "license": LICENSE,
        "media": [image_media(canvas.png, image_format="PNG", width=canvas.width, height=canvas.height)],
        "messages": [
            {"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{question}"},
            {"role": "assistant", "content": answer},
        ],
        "task": family,
        "answers": [answer],
        "scorer": judge,
    }


def transcribe(canvas: Canvas, rng: np.random.Generator) -> Exchange:
    """The digits in the order of reading: "3 7 1"."""
    return "Transcribe.", _listed(canvas), scorer("exact")


def boxed_transcription(canvas: Canvas, rng: np.random.Generator) -> Exchange:
    """Each digit with its box: "7 120 300 260 480; 3 ...": it teaches the places that ``locate`` asks for."""
    parts = (f"{digit} {canvas.box_text(index)}" for index, digit in enumerate(canvas.digits))
    return "Transcribe with boxes.", "; ".join(parts), scorer("exact")


def read(canvas: Canvas, rng: np.random.Generator) -> Exchange:
    """The digits in the order of reading, asked as a question."""
    return "Which digits?", _listed(canvas), scorer("exact")


def count(canvas: Canvas, rng: np.random.Generator) -> Exchange:
    """How many digits there are."""
    return "How many digits?", str(len(canvas.digits)), scorer("numeric")


def maximum(canvas: Canvas, rng: np.random.Generator) -> Exchange:
    """The largest digit."""
    return "Largest digit?", str(max(canvas.digits)), scorer("numeric")


def locate(canvas: Canvas, rng: np.random.Generator) -> Exchange | None:
    """The box of a digit that occurs once; None when no digit does."""
    unique = [index for index, digit in enumerate(canvas.digits) if canvas.digits.count(digit) == 1]
    if not unique:
        return None
    index = unique[int(rng.integers(len(unique)))]
    return f"Where is {canvas.digits[index]}?", canvas.box_text(index), scorer("box_iou", threshold=0.5)


def _listed(canvas: Canvas) -> str:
    return " ".join(map(str, canvas.digits))


_EXCHANGES: dict[Family, Callable[[Canvas, np.random.Generator], Exchange | None]] = {
    "transcribe": transcribe,
    "read": read,
    "count": count,
    "maximum": maximum,
    "locate": locate,
}
# What some training rows of a family ask instead: a transcription with boxes; reading in the words of pre-training.
_OTHERS: dict[Family, Callable[[Canvas, np.random.Generator], Exchange]] = {
    "transcribe": boxed_transcription,
    "read": transcribe,
}
