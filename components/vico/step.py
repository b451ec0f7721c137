"""Visual consistency learning: the model learns to answer from compressed tiles as it does from full ones."""

from pathlib import Path

from components.context import StepContext, StepResult
from components.flash_scores import EVERYTHING, score_routed
from components.row_shares import mixed, repeated
from components.scoring_table import heldout_sample, mean_score
from components.training_step import finish, run_stage
from components.vico.config import VicoConfig
from model.data.errors import InputError
from model.data.shards import open_dataset
from model.families.opening import load_network, load_processor
from model.training.consistency import FrozenReference, consistency_stage, require_flash
from model.training.projector_warmup import warmup_stage


def run(
    config: VicoConfig,
    *,
    rows: Path,
    transcriptions: Path,
    heldout: Path,
    init: Path,
    model: Path,
    context: StepContext,
) -> StepResult:
    """Train ``init`` on ``rows`` against a frozen copy of itself that sees every tile in full.

    Args:
        config: the training, the compressions, and how the second projector starts.
        rows: dataset of questions.
        transcriptions: dataset of pre-training; read when ``transcription_share`` is above 0.
        heldout: dataset; its first rows per family are scored at the end, in full and compressed.
        init: an InternVL model directory; a second projector and a router that it has are kept.
        model: the model directory to write. It has a second projector and a router, and routing is off.
        context: state directory and progress.

    Raises:
        InputError: a row or ``init`` cannot be used, or ``repeat`` names no family or leaves no rows.
    """
    dataset = repeated(list(open_dataset(rows).rows()), config.repeat, "vico.repeat")
    if config.transcription_share:
        dataset = mixed(dataset, list(open_dataset(transcriptions).rows()), config.transcription_share)
    network, processor = require_flash(load_network(init), load_processor(init), "vico")
    reference, _ = require_flash(load_network(init), processor, "vico")
    reference.route_by(None)
    network.route_by(None)
    if network.compressed_projector is None:
        network.add_flash(config.training.seed, config.start)
    warmed = {}
    if config.warmup is not None:
        seen = [row for row in dataset if row["media"]]
        if not seen:
            raise InputError(f"vico.warmup: {rows} has no rows with media")
        warmed = run_stage(network, processor, seen, warmup_stage(), config.warmup, context).numbers
    frozen = FrozenReference(reference, config.training)
    stage = consistency_stage(frozen, processor, config.objective, config.training)
    result = run_stage(network, processor, dataset, stage, config.training, context)
    if warmed:
        result.numbers |= {"warmup_loss": warmed["loss"], "warmup_steps": warmed["steps"]}
    if context.rank == 0:
        sample = heldout_sample(open_dataset(heldout), config.heldout_rows)
        compressed = score_routed(network, processor, sample, EVERYTHING, context.progress)
        result.numbers["heldout_mean_compressed"] = mean_score(compressed)
        result.values["compressed"] = {family: score.score for family, score in compressed.items()}
    return finish(network, processor, heldout, config.heldout_rows, model, context, result)
