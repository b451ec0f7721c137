"""The held-out table: answers scored by each row's own scorer, per task family, beside two baselines.

Shared by evaluate, gate and the training steps. Imports no torch until a model is asked for answers.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.context import FamilyScore, ProgressFunction, no_progress
from model.data.errors import InputError
from model.data.schema import Media, Row
from model.data.shards import Dataset
from scoring.intervals import bootstrap_mean
from scoring.score import Score, best_constant, score_answer

if TYPE_CHECKING:
    from model.families.interface import Network, Processor


def heldout_sample(dataset: Dataset, per_family: int) -> list[Row]:
    """The first ``per_family`` rows of each task family, in the order of the dataset."""
    taken: Counter[str] = Counter()
    sample = []
    for row in dataset.rows():
        if taken[row["task"]] < per_family:
            taken[row["task"]] += 1
            sample.append(row)
    return sample


def check_scorers(rows: Sequence[Row]) -> None:
    """Find out before any answer is generated whether every row can be scored at all.

    Raises:
        InputError: names the row whose scorer is unknown or whose own reference would not be right.
    """
    for row in rows:
        score = score_row(row, row["answers"][0] if row["answers"] else "")
        if score.value < 1:
            raise InputError(f"row {row['id']!r}: its scorer {row['scorer']['name']} rejects its own reference answer")


def score_row(row: Row, prediction: str) -> Score:
    """Score an answer with the row's own scorer.

    Raises:
        InputError: names the row whose scorer, parameters or references are unusable.
    """
    try:
        return score_answer(row["scorer"]["name"], row["scorer"]["parameters"], prediction, row["answers"])
    except ValueError as error:
        raise InputError(f"row {row['id']!r}: {error}") from error


def by_family(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Indices of the rows of each task family, families in alphabetical order."""
    families: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        families.setdefault(row["task"], []).append(index)
    return dict(sorted(families.items()))


def score_predictions(
    rows: Sequence[Row],
    predictions: Sequence[str],
    swapped: Sequence[str | None] | None = None,
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, FamilyScore]:
    """Score per task family, families in alphabetical order.

    Args:
        rows: held-out rows.
        predictions: the answer to each row.
        swapped: the answer to each row with another row's images, None where there was none to swap with.
        bootstrap: resamples of the 95 % interval.
        seed: of the resampling.

    Raises:
        InputError: names the row that cannot be scored.
        ValueError: numbers of rows and answers differ.
    """
    if len(predictions) != len(rows) or (swapped is not None and len(swapped) != len(rows)):
        raise ValueError(f"{len(rows)} rows, but {len(predictions)} answers")
    scores = [score_row(row, prediction) for row, prediction in zip(rows, predictions, strict=True)]
    constants = best_constant(rows)
    table = {}
    for family, indices in by_family(rows).items():
        interval = bootstrap_mean([scores[i].value for i in indices], resamples=bootstrap, seed=seed)
        pairs = [] if swapped is None else [(rows[i], swapped[i]) for i in indices]
        swapped_scores = [score_row(row, answer).value for row, answer in pairs if answer is not None]
        table[family] = FamilyScore(
            score=interval.mean,
            low=interval.low,
            high=interval.high,
            n=len(indices),
            constant=constants[family].score,
            swapped=math.fsum(swapped_scores) / len(swapped_scores) if swapped_scores else None,
            unparsed=sum(not scores[i].parsed for i in indices),
        )
    return table


def score_model_on_sample(
    model: "Network",
    processor: "Processor",
    rows: Sequence[Row],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: ProgressFunction = no_progress,
) -> dict[str, FamilyScore]:
    """Answer ``rows`` greedily, as they are and with images swapped, and score them: what a training step reports at
    its end. The model's mode is kept.

    Raises:
        InputError: names the row that cannot be scored or whose media cannot be read.
    """
    from model.families.generation import answer_rows

    check_scorers(rows)
    training = model.training
    model.eval()
    swapped_rows = swap_media(rows, seed)
    given = [row for row in swapped_rows if row is not None]

    def answer(questions: Sequence[Row]) -> list[str]:
        return answer_rows(
            model, processor, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=progress
        )

    try:
        answers = answer(rows)
        left = iter(answer(given))
    finally:
        model.train(training)
    swapped = [None if row is None else next(left) for row in swapped_rows]
    return score_predictions(rows, answers, swapped, bootstrap=bootstrap, seed=seed)


def mean_score(table: dict[str, FamilyScore]) -> float:
    """Mean over the families, each counted once."""
    return math.fsum(family.score for family in table.values()) / len(table)


def swap_media(rows: Sequence[Row], seed: int) -> list[Row | None]:
    """Each row with the media of another row of its family, or None where no such row has different media.

    Only rows with the same kinds and numbers of media are exchanged, so that the placeholders still fit. The
    permutation is drawn from ``seed``, and no row gets media equal to its own.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if row["media"]:
            groups.setdefault((row["task"], *(medium["kind"] for medium in row["media"])), []).append(index)
    swapped: list[Row | None] = [None] * len(rows)
    generator = random.Random(seed)
    for _, indices in sorted(groups.items()):
        for receiver, giver in _derangement([_identity(rows[i]["media"]) for i in indices], generator).items():
            row = rows[indices[receiver]]
            swapped[indices[receiver]] = {**row, "media": rows[indices[giver]]["media"]}
    return swapped


def _derangement(identities: Sequence[object], generator: random.Random) -> dict[int, int]:
    """Giver of each position, of another identity than the receiver; positions that can have none are left out.

    Positions are shuffled, those of equal identity brought together, and shifted by the size of the largest such
    block: then nobody meets its own identity, unless one identity holds more than half of all positions.
    """
    order = list(range(len(identities)))
    generator.shuffle(order)
    rank: dict[object, int] = {}
    for position in order:
        rank.setdefault(identities[position], len(rank))
    order.sort(key=lambda position: rank[identities[position]])
    shift = max(Counter(identities).values())
    givers = {receiver: order[(i + shift) % len(order)] for i, receiver in enumerate(order)}
    return {receiver: giver for receiver, giver in givers.items() if identities[receiver] != identities[giver]}


def _identity(media: Sequence[Media]) -> tuple[object, ...]:
    return tuple((m["sha256"] or m["bytes"] or m["uri"], m["start"], m["end"]) for m in media)
