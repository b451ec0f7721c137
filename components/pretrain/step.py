"""Native pre-training of a new network, or further training of a given one."""

from pathlib import Path

from components.context import StepContext, StepResult
from components.pretrain.config import PretrainConfig
from components.training_step import finish, run_supervised
from model.data.shards import open_dataset
from model.families.interface import Network, Processor
from model.families.opening import load_network, load_processor
from model.flash.build import build_model
from model.flash.processor import load_tokenizer


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
            result = run_supervised(network, processor, dataset, name, training, context)
    adapted = config.training is not None and config.training.lora is not None
    base = config.init_from if adapted else None
    return finish(network, processor, heldout, config.heldout_rows, model, context, result, adapter_of=base)


def _start(config: PretrainConfig, tokenizer: Path) -> tuple[Network, Processor]:
    if config.init_from is not None:
        return load_network(config.init_from), load_processor(config.init_from)
    return build_model(config.model, load_tokenizer(tokenizer), seed=config.training.seed)
