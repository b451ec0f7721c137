"""``curate``: sound, distinct, uncontaminated rows, split by stage; every other row is kept as a reject."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from components.context import StepContext, StepResult
from components.curate.config import CurateConfig
from components.curate.duplicates import (
    Signature,
    contamination_candidates,
    near_duplicate_candidates,
    reject_contaminated_images,
    reject_contaminated_texts,
    reject_exact_duplicates,
    reject_near_duplicates,
)
from components.curate.images import pixel_difference, reduced_grey
from components.curate.operators import signatures
from model.data.errors import InputError
from model.data.schema import Reject, Row
from model.data.shards import Dataset, open_dataset, write_dataset

STEP = "curate"
# The part of a reason before the colon, in the order of the checks.
CATEGORIES = ("schema", "image", "duplicate", "near_duplicate", "contaminated")
_REPORT_EVERY = 256


def run(
    config: CurateConfig, *, corpus: Path, heldout: Path, transcriptions: Path, questions: Path, context: StepContext
) -> StepResult:
    """Decide about every row of ``corpus`` and write the good ones, in order, to one of two datasets.

    Args:
        corpus: dataset to curate.
        heldout: evaluation rows; no row that gives one of them away remains.
        transcriptions, questions: outputs; rows of ``config.pretrain_tasks``, and all others.

    Raises:
        InputError: a dataset is missing or damaged, or a held-out row is not sound (it would be evaluated).
    """
    rows_in, evaluation_in = open_dataset(corpus, verify=True), open_dataset(heldout, verify=True)
    rows = _read_signatures(rows_in, config, "check rows", context)
    evaluation = _read_signatures(evaluation_in, config, "check held-out rows", context)
    for row in evaluation:
        if row.reason is not None:
            raise InputError(f"{heldout}: held-out row {row.row_id!r}: {row.reason}")
    reject_exact_duplicates(rows)
    _reject_by_pixels(rows, evaluation, rows_in, evaluation_in, config, context)
    reject_contaminated_texts(rows, evaluation, config.ngram)
    return _write(rows, rows_in, config, {True: transcriptions, False: questions}, context)


def _read_signatures(dataset: Dataset, config: CurateConfig, label: str, context: StepContext) -> list[Signature]:
    """The facts about every row, in the order of ``dataset.rows()``."""
    found: list[Signature] = []
    context.progress(label, 0, len(dataset))
    for batch in signatures(dataset, config).to_arrow_iter():
        for facts in batch.to_pylist():
            facts["phash"] = [int(value, 16) for value in facts["phash"]]
            found.append(Signature(row_id=facts.pop("id"), **facts))
        context.progress(label, len(found), len(dataset))
    return [row for _, row in sorted(zip(dataset.places(), found, strict=True), key=lambda pair: pair[0])]


def _reject_by_pixels(
    rows: list[Signature],
    evaluation: list[Signature],
    rows_in: Dataset,
    evaluation_in: Dataset,
    config: CurateConfig,
    context: StepContext,
) -> None:
    """Near duplicates and contaminated images: hashes nominate, then the nominated images are read and compared."""
    repeated = near_duplicate_candidates(rows, config.phash_distance)
    shared = list(contamination_candidates(rows, evaluation, config.phash_distance))
    ours = _images(rows_in, {row for pair in repeated for row in pair} | {row for row, *_ in shared})
    theirs = _images(evaluation_in, {row for _, _, row, _ in shared})

    @lru_cache(maxsize=8192)
    def grey(of_evaluation: bool, row: int, image: int) -> np.ndarray:
        return reduced_grey((theirs if of_evaluation else ours)[row][image], config)

    def same(other_is_evaluation: bool, row: int, image: int, other: int, other_image: int) -> bool:
        difference = pixel_difference(grey(False, row, image), grey(other_is_evaluation, other, other_image))
        return difference <= config.pixel_difference

    context.progress("compare images", 0, len(repeated) + len(shared))
    reject_near_duplicates(rows, repeated, lambda *places: same(False, *places))
    context.progress("compare images", len(repeated), len(repeated) + len(shared))
    reject_contaminated_images(rows, evaluation, shared, lambda *places: same(True, *places))
    context.progress("compare images", len(repeated) + len(shared), len(repeated) + len(shared))


def _images(dataset: Dataset, wanted: set[int]) -> dict[int, list[bytes]]:
    """Encoded images of the rows at ``wanted`` places."""
    if not wanted:
        return {}
    return {
        place: [medium["bytes"] or b"" for medium in row["media"]]
        for place, row in enumerate(dataset.rows())
        if place in wanted
    }


def _write(
    rows: list[Signature], rows_in: Dataset, config: CurateConfig, outputs: dict[bool, Path], context: StepContext
) -> StepResult:
    """Write both datasets with their rejects and the funnel of the whole step."""
    pretrain = set(config.pretrain_tasks)
    rejected = Counter(row.reason.split(":")[0] for row in rows if row.reason is not None)
    kept = Counter(row.task in pretrain for row in rows if row.reason is None)
    funnel = {
        "rows_in": len(rows),
        "rejected": {category: rejected[category] for category in CATEGORIES},
        "rows_out": {"transcriptions": kept[True], "questions": kept[False]},
    }
    assert len(rows) == rejected.total() + kept.total()
    for is_pretrain, directory in outputs.items():
        chosen = [(row.task in pretrain) is is_pretrain for row in rows]
        rejects = [
            Reject(id=row.row_id, step=STEP, reason=row.reason)
            for row, mine in zip(rows, chosen, strict=True)
            if mine and row.reason is not None
        ]
        sound = _sound(zip(rows, rows_in.rows(), chosen, strict=True), len(rows), directory.name, context)
        write_dataset(directory, sound, shards=config.shards, rejects=rejects, extra_manifest={"funnel": funnel})
    numbers = {"rows_in": len(rows), "transcriptions": kept[True], "questions": kept[False]}
    return StepResult(numbers=numbers | {f"rejected_{name}": count for name, count in funnel["rejected"].items()})


def _sound(rows: Iterable[tuple[Signature, Row, bool]], total: int, name: str, context: StepContext) -> Iterator[Row]:
    """The chosen rows that are sound, with the facts about their images filled in."""
    for done, (facts, row, chosen) in enumerate(rows):
        if done % _REPORT_EVERY == 0:
            context.progress(f"write {name}", done, total)
        assert row["id"] == facts.row_id, "Daft and the reader disagree on the order of rows"
        if not chosen or facts.reason is not None:
            continue
        for index, medium in enumerate(row["media"]):
            medium["sha256"], medium["phash"] = facts.sha256[index], f"{facts.phash[index]:016x}"
            medium["format"], medium["width"], medium["height"] = (
                facts.format[index],
                facts.width[index],
                facts.height[index],
            )
        yield row
    context.progress(f"write {name}", total, total)
