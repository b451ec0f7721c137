"""What the training steps share: run a stage, score a held-out sample, write the model."""

from collections.abc import Sequence
from pathlib import Path

from components.context import StepContext, StepResult
from components.scoring_table import heldout_sample, mean_score, score_model_on_sample
from model.data.schema import Row
from model.data.shards import open_dataset
from model.flash.checkpoint import save_model
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from model.training.config import TrainingConfig
from model.training.loop import supervised_stage, train


def finish(
    model: FlashModel,
    processor: FlashProcessor,
    heldout: Path,
    per_family: int,
    output: Path,
    context: StepContext,
    result: StepResult,
) -> StepResult:
    """Score the first ``per_family`` held-out rows of each family, then write the model directory."""
    sample = heldout_sample(open_dataset(heldout), per_family)
    result.heldout = score_model_on_sample(model, processor, sample, progress=context.progress)
    result.numbers["heldout_mean"] = mean_score(result.heldout)
    save_model(model, processor, output)
    return result


def run_supervised(
    model: FlashModel,
    processor: FlashProcessor,
    rows: Sequence[Row],
    name: str,
    config: TrainingConfig,
    context: StepContext,
) -> StepResult:
    """Train one supervised stage in ``state_dir/<name>``; the last logged loss becomes the stage's loss."""
    stage = supervised_stage(name, config)
    state = train(model, processor, rows, stage, config, context.state_dir / name, context.progress)
    numbers = {"loss": state.history[-1]["loss"], "tokens": state.tokens, "steps": state.step, "rows": len(rows)}
    return StepResult(numbers=numbers, history=state.history)
