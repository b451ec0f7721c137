"""Answer every held-out row, keep the raw answers, then score what was kept."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.answering import load_answerer
from components.context import FamilyScore, StepContext, StepResult
from components.evaluate.config import EvaluateConfig
from components.predictions import (
    PREDICTIONS,
    SCORES,
    check_same_rows,
    origin_of,
    read_predictions,
    read_routing,
    write_predictions,
    write_routing,
)
from components.routing_examples import routing_examples
from components.scoring_table import by_family, check_scorers, mean_score, score_predictions, swap_media
from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from model.flash.decisions import COMPRESSION
from scoring.score import best_constant

SCHEMA_VERSION = 1


def run(config: EvaluateConfig, *, model: Path, heldout: Path, evaluation: Path, context: StepContext) -> StepResult:
    """Score a model on held-out rows.

    Args:
        config: generation, baseline and interval settings.
        model: model directory.
        heldout: dataset directory.
        evaluation: output; gets ``predictions.parquet`` (raw answers), ``routing.json`` (of a model that routes its
            tiles) and then ``scores.json``.
        context: surroundings of the step.

    Raises:
        InputError: the model or the dataset is missing or broken, or a row cannot be scored (names it).
    """
    rows = list(open_dataset(heldout).rows())
    if not rows:
        raise InputError(f"{heldout}: no held-out rows to evaluate on")
    check_scorers(rows)
    origin = origin_of(model, heldout, config.max_new_tokens, config.precision)
    answers, swapped, routed, examples = _answer(config, model, rows, context)
    evaluation.mkdir(parents=True, exist_ok=True)
    write_predictions(evaluation, rows, answers, swapped, origin)
    write_routing(evaluation, routed, examples)
    table = score_stored(config, evaluation, rows)
    numbers = _numbers(table, len(rows))
    if (kept := _kept_tokens(routed)) is not None:
        numbers["visual_tokens_kept"] = kept
    return StepResult(numbers=numbers, heldout=table)


def score_stored(config: EvaluateConfig, evaluation: Path, rows: list[Row]) -> dict[str, FamilyScore]:
    """Score the raw answers stored in ``evaluation`` and write ``scores.json`` beside them. Runs no model.

    Raises:
        InputError: the stored answers are missing, corrupt or of other rows.
    """
    stored = read_predictions(evaluation)
    check_same_rows(stored, rows, evaluation)
    swapped = stored.swapped if config.swapped else None
    table = score_predictions(rows, stored.answers, swapped, bootstrap=config.bootstrap, seed=config.seed)
    constants = best_constant(rows)
    document = {
        "schema_version": SCHEMA_VERSION,
        **asdict(stored.origin),
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "predictions": PREDICTIONS,
        "families": {
            family: {**asdict(score), "constant_answer": constants[family].answer} for family, score in table.items()
        },
        "mean": mean_score(table),
        "rows": len(rows),
        "unparsed": sum(score.unparsed for score in table.values()),
    }
    if routed := read_routing(evaluation, len(rows)):
        document["visual_tokens_kept"] = _kept_tokens(routed)
        for family, indices in by_family(rows).items():
            document["families"][family]["visual_tokens_kept"] = _kept_tokens([routed[index] for index in indices])
    write_atomic(evaluation / SCORES, json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")
    return table


def _answer(
    config: EvaluateConfig, model: Path, rows: list[Row], context: StepContext
) -> tuple[list[str], list[str | None], list[tuple[int, int]], list[dict[str, Any]]]:
    """The answer to every row, and with another row's images where there are any; the tiles of all rows (compressed,
    all), and every tile of a few."""
    answerer = load_answerer(
        model,
        precision=config.precision,
        threads=config.threads,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        state_dir=context.state_dir,
        progress=context.progress,
    )
    answers = answerer.answer(rows, "answering")
    routed = answerer.routed
    examples = routing_examples(answerer.model, rows, routed) if routed else []
    swapped: list[str | None] = [None] * len(rows)
    if config.swapped:
        exchanged = swap_media(rows, config.seed)
        asked = [index for index, row in enumerate(exchanged) if row is not None]
        with_other_images = answerer.answer([row for row in exchanged if row is not None], "images swapped")
        for index, answer in zip(asked, with_other_images, strict=True):
            swapped[index] = answer
    return answers, swapped, routed, examples


def _kept_tokens(routed: list[tuple[int, int]]) -> float | None:
    """Share of the visual tokens left of rows with these (compressed tiles, tiles), blank or not; None of no tiles."""
    compressed, tiles = (sum(counts) for counts in zip(*routed, strict=True)) if routed else (0, 0)
    return 1 - (1 - 1 / COMPRESSION) * compressed / tiles if tiles else None


def _numbers(table: dict[str, FamilyScore], rows: int) -> dict[str, float]:
    numbers = {
        "rows": float(rows),
        "mean": mean_score(table),
        "unparsed": float(sum(score.unparsed for score in table.values())),
    }
    swapped = [score.swapped for score in table.values() if score.swapped is not None]
    if swapped:
        numbers["swapped_mean"] = sum(swapped) / len(swapped)
    return numbers
