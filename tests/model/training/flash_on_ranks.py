"""Visual consistency learning and router training of small cases, in one process or on the ranks of a torchrun."""

import json
import sys
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from model.objectives.config import RouterObjective, VicoObjective
from model.training.config import TrainingConfig
from model.training.consistency import FrozenReference, consistency_stage
from model.training.engine import world
from model.training.loop import train
from model.training.projector_warmup import warmup_stage
from model.training.routing import routing_stage
from tests.tiny import byte_tokenizer, picture, question_row
from tests.tiny_flash import random_flash_model

BASE = {
    "learning_rate": 1e-3,
    "eps": 1e-4,  # a gradient that is zero but for rounding must not become a step of the whole rate
    "steps": 4,
    "batch_size": 4,
    "micro_batch_size": 1,
    "precision": "float32",
    "log_every": 1,
    "checkpoint_every": 2,
    "threads": 1,
    "loss_chunk": 4,
    "seed": 4,
}
PACKS = {"packing": {"max_tokens": 500, "max_units": 9, "lookahead": 6}, "micro_batch_size": None, "batch_size": 2}
CASES = {
    "warmup": {},
    "vico": {},
    "vico packs": PACKS,
    "vico mixed": {},
    "vico zero2": {"zero": {"stage": 2}},
    "vico zero3": {"zero": {"stage": 3}, "activation_checkpointing": "all"},
    "route tile": {},
    "route image packs": PACKS,
    "route tile zero3": {"zero": {"stage": 3}},
}


def rows():
    """Text-only rows and rows with one to four tiles, whose answers differ in length."""
    rng = np.random.default_rng(5)
    grids = [[(1, 1)], [], [(2, 1)], [(1, 1), (2, 1)], [], [(1, 1)]]
    return [
        question_row(f"r{i}", [picture(rng, *grid) for grid in grids[i % 6]], "!ab" * (1 + 2 * (i % 4)))
        for i in range(9)
    ]


@cache
def start():
    """(network, processor) without dropout, which is drawn anew for every rank and micro-batch."""
    network, processor = random_flash_model(byte_tokenizer())
    network.route_by(None)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network, processor


def moved(network):
    """A reference that the network is not: its losses in full are above zero."""
    other = deepcopy(network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.language_model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return other


def stage_of(name: str, processor, network, config: TrainingConfig):
    """The stage of a case."""
    if name == "warmup":
        return warmup_stage()
    reference = FrozenReference(moved(network), config)
    if name.startswith("vico"):
        objective = VicoObjective(draw="mixed" if "mixed" in name else "image")
        return consistency_stage(reference, processor, objective, config)
    measure = "tile" if "tile" in name else "image"
    # At 50 the threshold may be a ratio that comes again, rounded otherwise.
    objective = RouterObjective(window=12, floor=1e-3, measure=measure, percentile=47)
    return routing_stage(reference, processor, objective, config)


def run(name: str, changes: dict, state_dir: Path, stop_at: int | None = None):
    """(network, state) of one case."""
    config = TrainingConfig.model_validate_json(json.dumps(BASE | changes | {"processes": world()[1]}))
    network, processor = start()
    network = deepcopy(network)

    def progress(_label, done, _total):
        if done == stop_at:
            raise KeyboardInterrupt

    stage = stage_of(name, processor, network, config)
    return network, train(network, processor, rows(), stage, config, state_dir, progress)


def stopped_and_resumed(name: str, changes: dict, state_dir: Path):
    """The same, stopped after step 3 of 4 in between, a step behind its checkpoint."""
    with suppress(KeyboardInterrupt):
        run(name, changes, state_dir, stop_at=3)
    return run(name, changes, state_dir)


def main(out: Path) -> None:
    """Run every case; rank 0 writes histories and weights."""
    histories = {}
    for name, changes in CASES.items():
        network, state = run(name, changes, out / name)
        histories[name] = state.history
        if world()[0] == 0:
            save_file({key: value.clone() for key, value in network.named_parameters()}, out / f"{name}.safetensors")
    if world()[0] == 0:
        (out / "histories.json").write_text(json.dumps(histories))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
