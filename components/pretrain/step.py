"""Native pre-training of a new network, or further training of a given one."""

from pathlib import Path

from components.context import StepContext, StepResult
from components.pretrain.config import PretrainConfig
from components.training_step import finish, run_supervised
from model.data.shards import open_dataset
from model.flash.build import build_model
from model.flash.checkpoint import load_model, load_processor
from model.flash.network import FlashModel, set_attention
from model.flash.processor import FlashProcessor, load_tokenizer


def run(
    config: PretrainConfig, *, rows: Path, heldout: Path, tokenizer: Path, model: Path, context: StepContext
) -> StepResult:
    """Train all parameters on ``rows`` with the next-token loss, after an optional projector warm-up.

    Args:
        config: the network or the directory to start from, and the training.
        rows: dataset of transcriptions.
        heldout: dataset; its first rows per family are scored at the end.
        tokenizer: directory with tokenizer.json, for a new network.
        model: the model directory to write.
        context: state directory and progress.

    Raises:
        InputError: a row, the tokenizer or the model to start from cannot be used.
    """
    dataset = list(open_dataset(rows).rows())
    network, processor = _start(config, tokenizer)
    result = StepResult()
    for name, training in (("warmup", config.warmup), ("pretrain", config.training)):
        if training is not None:
            set_attention(network, training.attention)
            result = run_supervised(network, processor, dataset, name, training, context)
    return finish(network, processor, heldout, config.heldout_rows, model, context, result)


def _start(config: PretrainConfig, tokenizer: Path) -> tuple[FlashModel, FlashProcessor]:
    if config.init_from is not None:
        return load_model(config.init_from), load_processor(config.init_from)
    return build_model(config.model, load_tokenizer(tokenizer), seed=config.training.seed)
