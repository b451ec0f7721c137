"""Supervised fine-tuning on the response tokens."""

from pathlib import Path

import torch

from components.context import StepContext, StepResult
from components.sft.config import SftConfig
from components.training_step import finish, run_supervised
from model.data.shards import open_dataset
from model.flash.build import redraw_weights
from model.flash.checkpoint import load_model, load_processor
from model.flash.network import set_attention


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
    network, processor = load_model(init, dtype=torch.float32), load_processor(init)
    if config.init == "random":
        redraw_weights(network, config.training.seed)
    set_attention(network, config.training.attention)
    result = run_supervised(network, processor, dataset, "sft", config.training, context)
    return finish(network, processor, heldout, config.heldout_rows, model, context, result)
