"""The rows of the embedded corpus's further families: every task has its own random stream."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from components.collect.embedded.arithmetic import make_arithmetic
from components.collect.embedded.charts import make_charts
from components.collect.embedded.clips import make_clips
from components.collect.embedded.comparison import make_comparison
from components.collect.embedded.config import EmbeddedConfig
from components.collect.embedded.fine_print import make_fine_print
from components.collect.embedded.grounding import make_grounding
from components.collect.embedded.pages import make_pages
from components.collect.embedded.photos import make_photos
from components.collect.embedded.sample import Maker, Sample
from components.collect.embedded.screens import make_screens
from components.collect.embedded.text_arithmetic import make_text_arithmetic
from components.collect.embedded.words import make_words
from model.data.errors import InputError
from model.data.schema import PLACEHOLDERS, Row

NOISY = " (noisy demonstration)"
"""Ends the ``source`` of a training row whose demonstration is wrong on purpose."""

# The place of a family is part of its random stream: new ones go to the end.
FAMILIES: dict[str, Any] = {
    "arithmetic": make_arithmetic,
    "text_arithmetic": make_text_arithmetic,
    "comparison": make_comparison,
    "words": make_words,
    "charts": make_charts,
    "pages": make_pages,
    "grounding": make_grounding,
    "photos": make_photos,
    "screens": make_screens,
    "clips": make_clips,
    "fine_print": make_fine_print,
}
_TRIES = 1000


def embedded_rows(config: EmbeddedConfig) -> tuple[Iterator[Row], Iterator[Row]]:
    """Training rows and held-out rows, family by family and task by task.

    Row ``i`` of a task is the same whatever the number of rows and whichever other families and tasks there are.
    What a family holds out (see its configuration) is in no training row.

    Raises:
        InputError: a configuration under which a task has no question (while the rows are drawn).
    """
    return _rows(config, heldout=False), _rows(config, heldout=True)


def embedded_counts(config: EmbeddedConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Training rows and held-out rows of each task."""
    sizes = {task: family.rows for name in FAMILIES if (family := getattr(config, name)) for task in family.tasks}
    return sizes, dict.fromkeys(sizes, config.heldout)


def _rows(config: EmbeddedConfig, *, heldout: bool) -> Iterator[Row]:
    split = "heldout" if heldout else "train"
    counts = embedded_counts(config)[heldout]
    for number, (name, make) in enumerate(FAMILIES.items()):
        family = getattr(config, name)
        if family is None:
            continue
        maker: Maker = make(family, config, heldout=heldout)
        every = list(type(family).model_fields["tasks"].default)
        for task in family.tasks:
            rng = np.random.default_rng([config.seed, 3 + heldout, number, every.index(task)])
            for index in range(counts[task]):
                yield _row(f"embedded-{split}-{task}-{index:06d}", task, _sample(maker, name, task, rng))


def _sample(maker: Maker, family: str, task: str, rng: np.random.Generator) -> Sample:
    for _ in range(_TRIES):
        if (sample := maker(task, rng)) is not None:
            return sample
    raise InputError(f"collect.embedded.{family}: no row of task {task} can be drawn with these settings")


def _row(row_id: str, task: str, sample: Sample) -> Row:
    shown = [PLACEHOLDERS[medium["kind"]] for medium in sample.media]
    if len(shown) > 1:
        shown = [f"Image-{number}: {placeholder}" for number, placeholder in enumerate(shown, start=1)]
    return {
        "id": row_id,
        "source": sample.source + NOISY * sample.noisy,
        "license": sample.license,
        "media": list(sample.media),
        "messages": [
            {"role": "user", "content": "\n".join([*shown, sample.question])},
            {"role": "assistant", "content": sample.answer},
        ],
        "task": task,
        "answers": list(sample.references or (sample.answer,)),
        "scorer": sample.judge,
    }
