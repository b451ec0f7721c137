"""What two ranks of one torchrun do for test_distributed.py: train the same rows in several ways, note the results."""

import json
import sys
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from model.data.errors import InputError
from model.families.opening import load_network, load_processor
from model.flash.build import build_model
from model.training.config import TrainingConfig
from model.training.engine import world
from model.training.loop import supervised_loss, supervised_stage, train
from model.training.stage import Stage, trained_parameters
from tests.tiny import byte_tokenizer, picture, question_row, tiny_config
from tests.tiny_qwen import GENERATIONS, mixed_row, save_stock

BASE = {
    "learning_rate": 1e-3,
    "steps": 4,
    "batch_size": 4,
    "micro_batch_size": 1,
    "precision": "float32",
    "log_every": 1,
    "checkpoint_every": 2,
    "threads": 1,
    "text_to_multimodal": [1, 1],
    "loss_chunk": 4,
}
PACKS = {"packing": {"max_tokens": 500, "max_units": 9, "lookahead": 6}, "micro_batch_size": None, "batch_size": 2}
CASES = {
    "copies": {},
    "zero1": {"zero": {"stage": 1}},
    "zero2": {"zero": {"stage": 2, "offload": "optimizer"}},
    "zero3": {"zero": {"stage": 3}},
    "zero3 offloaded": {"zero": {"stage": 3, "offload": "all"}, "activation_checkpointing": "all"},
    "zero3 short": {"zero": {"stage": 3}},
    "zero3 packs": {"zero": {"stage": 3}, **PACKS},
    "zero2 half": {"zero": {"stage": 2}, "precision": "bfloat16"},
    "zero3 lora": {"zero": {"stage": 3}, "lora": {"rank": 2, "targets": ["language", "vision"]}},
    "qwen2_5_vl zero3": {"zero": {"stage": 3}},
    "qwen3_vl_moe zero3 packs": {"zero": {"stage": 3}, **PACKS, "packing": {"max_tokens": 300, "max_units": 60}},
}
"""Settings by name; a name that begins with a Qwen-VL trains that, on text, images and videos."""


def rows():
    """Text-only rows and rows with one, two or five tiles; the ratio gives every text row to one rank."""
    rng = np.random.default_rng(5)
    grids = [[], [(1, 1)], [], [(2, 2)], [], [(1, 1), (1, 1)]]
    # Answers of unequal length: the ranks' losses need unequally many chunks.
    return [
        question_row(f"r{i}", [picture(rng, *grid) for grid in grids[i % 6]], "!ab" * (1 + 2 * (i % 4)))
        for i in range(9)
    ]


def qwen_rows():
    """Text-only rows, and rows with a video, an image, and a video between images."""
    rng = np.random.default_rng(5)
    kinds = ["", "v", "", "i", "", "ivi"]
    return [mixed_row(f"r{i}", rng, kinds[i % 6], "!ab" * (1 + 2 * (i % 4))) for i in range(9)]


@cache
def qwen(generation: str):
    """(network, processor). First called before the ranks are joined: then transformers writes files on rank 0 only."""
    with TemporaryDirectory() as directory:
        save_stock(generation, Path(directory))
        return load_network(Path(directory)), load_processor(Path(directory))


def begin(name: str):
    """(network, processor, rows) of a case."""
    if (generation := name.split()[0]) in GENERATIONS:
        network, processor = qwen(generation)
        return deepcopy(network), processor, qwen_rows()
    return *build_model(tiny_config(), byte_tokenizer(), seed=0), rows()


def run(name: str, changes: dict, state_dir: Path, stop_at: int | None = None, **more):
    """(network, state) of one case."""
    config = TrainingConfig.model_validate_json(json.dumps(BASE | changes | more | {"processes": world()[1]}))
    network, processor, given = begin(name)
    if name.endswith("short"):
        given = given[:3]  # a rank is through with its one row of a kind long before the other

    def progress(_label, done, _total):
        if done == stop_at:
            raise KeyboardInterrupt

    return network, train(network, processor, given, supervised_stage(name, config), config, state_dir, progress)


def stopped_and_resumed(name: str, changes: dict, state_dir: Path):
    """The same, killed after step 3 of 4 in between."""
    with suppress(KeyboardInterrupt):
        run(name, changes, state_dir, stop_at=3)
    return run(name, changes, state_dir)


def begun(name: str, changes: dict, state_dir: Path) -> None:
    """Leave a checkpoint of step 2 for another number of ranks."""
    with suppress(KeyboardInterrupt):
        run(name, changes, state_dir, stop_at=2)


def refused(out: Path) -> None:
    """Note what this rank says of a loss that is not a number for one row, which one rank holds."""

    def loss(network, batch, denominator):
        return supervised_loss(network, batch, denominator) * (float("nan") if "r2" in batch.row_ids else 1)

    config = TrainingConfig.model_validate_json(json.dumps(BASE | {"processes": world()[1]}))
    network, processor, given = begin("refused")
    try:
        train(
            network,
            processor,
            given,
            Stage("sft", loss, trained_parameters(config)),
            config,
            out / "refused",
            lambda *_: None,
        )
    except InputError as error:
        (out / f"refused-{world()[0]}").write_text(str(error))


def main(out: Path) -> None:
    """Run every case; rank 0 writes histories and weights."""
    histories = {}
    for name in CASES:
        begin(name)
    for name, changes in CASES.items():
        network, state = run(name, changes, out / "whole" / name)
        again, resumed = stopped_and_resumed(name, changes, out / "stopped" / name)
        same = all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
        if name in ("zero3", "zero3 packs"):
            begun(name, changes, out / "begun" / name)
        histories[name] = {"history": state.history, "resumed": resumed.history, "same_weights": same}
        if world()[0] == 0:
            save_file({n: p.detach().contiguous() for n, p in network.named_parameters()}, out / f"{name}.safetensors")
    refused(out)
    if world()[0] == 0:
        (out / "histories.json").write_text(json.dumps(histories))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
