"""Training of the router: which tiles can be compressed without changing the answer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from components.context import StepContext, StepResult
from components.flash_scores import kept_tokens, score_routed
from components.route.calibration import choose_threshold, set_apart
from components.route.config import RouteConfig
from components.row_shares import repeated
from components.scoring_table import check_scorers, heldout_sample, mean_score
from components.training_step import finish, run_stage
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from model.families.opening import load_network, load_processor
from model.flash.decisions import Decision
from model.training.consistency import FrozenReference, require_flash
from model.training.measures import measure_tiles
from model.training.routing import measure_ratios, routing_stage


def run(
    config: RouteConfig, *, rows: Path, heldout: Path, init: Path, reference: Path, model: Path, context: StepContext
) -> StepResult:
    """Train the router of ``init``, and nothing else of it, on ``rows``.

    Args:
        config: the training, the labels, and the threshold that is written into the model.
        rows: dataset of questions; those without media teach a router nothing and are left out.
        heldout: dataset; its first rows per family are scored at the end, in full and routed.
        init: the model directory of ``vico``.
        reference: the model directory that ``vico`` started from: what both losses of the ratio are held against.
        model: the model directory to write; routing is on.
        context: state directory and progress.

    Raises:
        InputError: a row or a model cannot be used, or ``repeat`` names no family or leaves no rows.
    """
    dataset = [row for row in open_dataset(rows).rows() if row["media"]]
    if not dataset:
        raise InputError(f"route: {rows} has no rows with media")
    network, processor = require_flash(load_network(init), load_processor(init), "route")
    if network.compressed_projector is None:
        raise InputError(f"{init}: the model has no second projector; train it with the step vico first")
    fixed, _ = require_flash(load_network(reference), load_processor(reference), "route")
    if fixed.rows_per_tile != network.rows_per_tile or fixed.head.weight.shape[0] != network.head.weight.shape[0]:
        raise InputError(
            f"{reference}: has another vocabulary or other tiles than {init}; give the model vico began with"
        )
    for each in (network, fixed):
        each.route_by(None)
    frozen = FrozenReference(fixed, config.training)
    apart: list[Row] = []
    if config.calibration is not None:
        dataset, apart = set_apart(dataset, config.calibration.rows)
        check_scorers(apart)
    dataset = repeated(dataset, config.repeat, "route.repeat")
    stage = routing_stage(frozen, processor, config.objective, config.training)
    result = run_stage(network, processor, dataset, stage, config.training, context)
    if context.rank != 0:
        return result
    threshold = config.compress_above
    if config.calibration is not None:
        chosen = choose_threshold(network, processor, apart, config.calibration, context.progress)
        threshold = chosen.threshold
        result.numbers |= {"calibration_mean_full": chosen.full, "calibration_mean": chosen.routed}
    result.numbers["compress_above"] = threshold
    sample = heldout_sample(open_dataset(heldout), config.heldout_rows)
    compared = compared_rows(apart, sample, config.compared_rows)
    if compared:
        ratios = partial(
            measure_ratios,
            network,
            reference=frozen,
            floor=config.objective.floor,
            chunk=config.training.loss_chunk,
        )
        measured = measure_tiles(network, processor, ratios, compared, context.progress)
        result.numbers |= measured.report(config.objective.percentile, threshold)
    full = score_routed(network, processor, sample, None, context.progress)
    result.numbers["heldout_mean_full"] = mean_score(full)
    network.route_by(Decision(absolute_threshold=threshold))
    kept = kept_tokens(network, processor, sample)
    if kept:
        result.numbers["inked_tokens_kept"] = sum(kept.values()) / len(kept)
    result.values |= {"full": {family: score.score for family, score in full.items()}, "kept": kept}
    return finish(network, processor, heldout, config.heldout_rows, model, context, result)


def compared_rows(apart: Sequence[Row], heldout: Sequence[Row], number: int) -> list[Row]:
    """At most ``number`` rows that the router has not learned from, to compare the measures on: of those set apart for
    a calibration, or else of those held out with media. From all over them: families may stand one after the other."""
    unseen = list(apart) or [row for row in heldout if row["media"]]
    number = min(number, len(unseen))
    return [unseen[index * len(unseen) // number] for index in range(number)]
