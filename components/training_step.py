"""What the training steps share: run a stage, fold an adapter, score a held-out sample, write the model."""

from collections.abc import Sequence
from pathlib import Path

from components.context import StepContext, StepResult
from components.scoring_table import heldout_sample, mean_score, score_model_on_sample
from model.data.schema import Row
from model.data.shards import open_dataset
from model.families.interface import Network, Processor
from model.families.opening import save_network
from model.training.config import TrainingConfig
from model.training.loop import supervised_stage, train
from model.training.stage import Stage


def finish(
    network: Network,
    processor: Processor,
    heldout: Path,
    per_family: int,
    output: Path,
    context: StepContext,
    result: StepResult,
    *,
    adapter_of: Path | None = None,
) -> StepResult:
    """Score the first ``per_family`` held-out rows of each family, then write the model directory.

    Ranks above 0 have nothing to do.

    Args:
        network: trained.
        processor: of its family.
        heldout: dataset.
        per_family: rows of each of its task families.
        output: the model directory to write.
        context: rank and progress.
        result: receives the scores.
        adapter_of: the model directory that the network's adapter was trained on; None when it has none.
    """
    if context.rank != 0:
        return result
    if adapter_of is not None:
        from components.adapter import fold_adapter  # peft takes a second to import, and most runs do without

        fold_adapter(network, output, adapter_of)
    sample = heldout_sample(open_dataset(heldout), per_family)
    result.heldout = score_model_on_sample(network, processor, sample, progress=context.progress)
    result.numbers["heldout_mean"] = mean_score(result.heldout)
    save_network(network, processor, output)
    return result


def run_stage(
    network: Network,
    processor: Processor,
    rows: Sequence[Row],
    stage: Stage,
    config: TrainingConfig,
    context: StepContext,
) -> StepResult:
    """Train one stage in ``state_dir/<its name>``; the last logged loss becomes the stage's loss."""
    state_dir = context.state_dir / stage.name
    state = train(network, processor, rows, stage, config, state_dir, context.progress, context.metrics)
    numbers = {"loss": state.history[-1]["loss"], "tokens": state.tokens, "steps": state.step, "rows": len(rows)}
    return StepResult(numbers=numbers, history=state.history)


def run_supervised(
    network: Network,
    processor: Processor,
    rows: Sequence[Row],
    name: str,
    config: TrainingConfig,
    context: StepContext,
) -> StepResult:
    """Train one supervised stage in ``state_dir/<name>``."""
    return run_stage(network, processor, rows, supervised_stage(name, config), config, context)
