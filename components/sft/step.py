"""Supervised fine-tuning on the response tokens."""

from pathlib import Path

from components.context import StepContext, StepResult
from components.sft.config import SftConfig
from components.training_step import finish, run_supervised
from model.data.errors import InputError
from model.data.shards import open_dataset
from model.families.opening import load_network, load_processor
from model.flash.build import redraw_weights
from model.flash.network import FlashModel


def run(config: SftConfig, *, rows: Path, heldout: Path, init: Path, model: Path, context: StepContext) -> StepResult:
    """Fine-tune ``init`` on ``rows``.

    Args:
        config: the training, and whether to keep the weights of ``init`` or draw new ones (the control).
        rows: dataset of questions.
        heldout: dataset; its first rows per family are scored at the end.
        init: the pre-trained model directory.
        model: the model directory to write.
        context: state directory and progress.

    Raises:
        InputError: a row or ``init`` cannot be used.
    """
    dataset = list(open_dataset(rows).rows())
    network, processor = load_network(init), load_processor(init)
    if config.init == "random":
        if not isinstance(network, FlashModel):
            raise InputError("sft.init: random weights are drawn for InternVL only")
        redraw_weights(network, config.training.seed)
    result = run_supervised(network, processor, dataset, "sft", config.training, context)
    base = init if config.training.lora else None
    return finish(network, processor, heldout, config.heldout_rows, model, context, result, adapter_of=base)
