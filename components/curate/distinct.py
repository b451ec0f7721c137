"""``exact_duplicates``, ``near_duplicates`` and ``decontaminate``: the operators over ``duplicates.py``."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import daft
from daft import DataType, Expression, Series, col

from components.curate.duplicates import (
    Signature,
    contamination_candidates,
    near_duplicate_candidates,
    reject_contaminated_images,
    reject_contaminated_texts,
    reject_contaminated_videos,
    reject_exact_duplicates,
    reject_near_duplicates,
)
from components.curate.images import pixel_difference, reduced_grey
from components.curate.recipe import Decontaminate, ExactDuplicates, NearDuplicates
from components.curate.rows import Rows, Verdicts
from components.curate.text_operators import clip_bounds_of


def text_keys(section: ExactDuplicates | NearDuplicates) -> Expression:
    """Fact ``text_key``: a hash of the roles and contents of the messages, white space at the ends ignored, and of the
    bounds of clips."""
    return _text_key(col("messages"), col("media"), col("reason"))


def plain_texts(section: Decontaminate) -> Expression:
    """Fact ``text``: the whole text of a row without media, null for others."""
    return _plain_text(col("media"), col("messages"), col("reason"))


def exact_duplicates(section: ExactDuplicates, rows: Rows) -> Verdicts:
    """Rows whose id, or whose messages and media, an earlier sound row has."""
    found = _signatures(rows, text=False)
    reject_exact_duplicates(found)
    return _verdicts(rows, found)


def near_duplicates(section: NearDuplicates, rows: Rows) -> Verdicts:
    """Rows that say what an earlier row says about images that look the same: hashes nominate, pixels decide."""
    found = _signatures(rows, text=False)
    lookalikes = near_duplicate_candidates(found, section.phash_distance)
    grey = rows.images(set(lookalikes.kind), reduced_grey)

    def same(place: int, image: int, other: int, other_image: int) -> bool:
        return pixel_difference(grey[place][image], grey[other][other_image]) <= section.pixel_difference

    reject_near_duplicates(found, lookalikes, same)
    return _verdicts(rows, found)


def decontaminate(section: Decontaminate, rows: Rows) -> Verdicts:
    """Rows that show an image or video of an evaluation row and give its answer, or share its words where neither has
    media."""
    found = _signatures(rows, text=True)
    for evaluation in rows.evaluation:
        theirs = _signatures(evaluation, text=True)
        _reject_images(section, rows, found, evaluation, theirs)
        reject_contaminated_videos(found, theirs)
        reject_contaminated_texts(found, theirs, section.ngram)
    return _verdicts(rows, found)


def _reject_images(
    section: Decontaminate, rows: Rows, found: list[Signature], evaluation: Rows, theirs: list[Signature]
) -> None:
    shared = list(contamination_candidates(found, theirs, section.phash_distance))
    grey = rows.images({place for place, *_ in shared}, reduced_grey)
    their_grey = evaluation.images({place for _, _, place, _ in shared}, reduced_grey)

    def same(place: int, image: int, other: int, other_image: int) -> bool:
        return pixel_difference(grey[place][image], their_grey[other][other_image]) <= section.pixel_difference

    reject_contaminated_images(found, theirs, shared, same)


def _signatures(rows: Rows, *, text: bool) -> list[Signature]:
    """What decides about each row; ``text`` for the facts of contamination, else those of duplicates."""
    count = len(rows)
    columns: tuple[Iterable[object], ...] = (
        rows.fact("id"),
        rows.reasons,
        rows.fact("answers"),
        rows.fact("sha256"),
        rows.fact("phash"),
        [""] * count if text else rows.fact("text_key"),
        rows.fact("text") if text else [None] * count,
    )
    return [
        Signature(row_id, reason, answers, sha256 or (), _hashes(phash or ()), key or "", words)
        for row_id, reason, answers, sha256, phash, key, words in zip(*columns, strict=True)
    ]


def _hashes(phash: Sequence[str | None]) -> list[int | None]:
    return [None if value is None else int(value, 16) for value in phash]


def _verdicts(rows: Rows, found: Sequence[Signature]) -> Verdicts:
    """What is new."""
    return Verdicts(
        {
            place: one.reason
            for place, (one, before) in enumerate(zip(found, rows.reasons, strict=True))
            if before is None and one.reason is not None
        }
    )


@daft.func.batch(
    return_dtype=DataType.struct({"reason": DataType.string(), "text_key": DataType.string()}), use_process=False
)
def _text_key(messages: Series, media: Series, reason: Series) -> list[dict[str, str | None]]:
    return [
        {"reason": None, "text_key": _hash_of(turns, shown) if earlier is None else None}
        for turns, shown, earlier in zip(messages.to_pylist(), media.to_pylist(), reason.to_pylist(), strict=True)
    ]


def _hash_of(turns: list[dict[str, str]], media: list[dict[str, Any]]) -> str:
    said = [(turn["role"], turn["content"].strip()) for turn in turns]
    return hashlib.sha256(json.dumps([said, clip_bounds_of(media)]).encode()).hexdigest()


@daft.func.batch(
    return_dtype=DataType.struct({"reason": DataType.string(), "text": DataType.string()}), use_process=False
)
def _plain_text(media: Series, messages: Series, reason: Series) -> list[dict[str, str | None]]:
    columns = zip(media.to_pylist(), messages.to_pylist(), reason.to_pylist(), strict=True)
    return [
        {"reason": None, "text": "\n".join(t["content"] for t in turns) if not shown and earlier is None else None}
        for shown, turns, earlier in columns
    ]
