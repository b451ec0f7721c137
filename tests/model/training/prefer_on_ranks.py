"""What two ranks of one torchrun do for test_preferences_on_ranks.py: train the same pairs in several ways."""

import json
import sys
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.torch import save_file

from model.families.opening import load_network, load_processor
from model.objectives.config import MpoObjective
from model.training.config import TrainingConfig
from model.training.engine import world
from model.training.loop import train
from model.training.preferences import preference_stage
from model.training.references import ReferenceCache, ReferenceCopy
from tests.model.training.two_ranks import note_patience
from tests.tiny import byte_tokenizer, picture, question_row, random_model
from tests.tiny_qwen import GENERATIONS, mixed_row, save_stock

BASE = {
    "learning_rate": 1e-3,
    "steps": 3,
    "batch_size": 4,
    "micro_batch_size": 1,
    "precision": "float32",
    "log_every": 1,
    "checkpoint_every": 1,
    "threads": 1,
    "loss_chunk": 4,
}
CASES = {
    "copies": {},
    "copies, second network": {},
    "zero2": {"zero": {"stage": 2}, "micro_batch_size": 2},
    "zero3": {"zero": {"stage": 3}, "train": "without_vision"},
    "zero3, second network": {"zero": {"stage": 3}},
    "zero3 half": {"zero": {"stage": 3}, "precision": "bfloat16"},
    "qwen3_vl_moe zero3": {"zero": {"stage": 3}},
}
"""Settings by name; a name that begins with a Qwen-VL trains that."""


def pairs(row, number):
    """Answers of unequal length: the ranks' losses need unequally many chunks of the head."""
    return row | {"chosen": "!ab" * (1 + number % 3), "rejected": "!xy7" * (1 + number % 2)}


def rows():
    """Five pairs: text alone, and one to five tiles. The last file of the cache is one rank's alone."""
    rng = np.random.default_rng(5)
    grids = [[], [(1, 1)], [], [(2, 2)], [(1, 1), (1, 1)]]
    return [pairs(question_row(f"r{i}", [picture(rng, *g) for g in given], "a"), i) for i, given in enumerate(grids)]


def qwen_rows():
    """Text alone, a clip, an image, and a clip between images."""
    rng = np.random.default_rng(5)
    return [pairs(mixed_row(f"r{i}", rng, kinds, "a"), i) for i, kinds in enumerate(("", "v", "", "i", "ivi"))]


@cache
def qwen(generation):
    """(network, processor). First called before the ranks are joined: then transformers writes files on rank 0 only."""
    with TemporaryDirectory() as directory:
        save_stock(generation, Path(directory))
        return load_network(Path(directory)), load_processor(Path(directory))


def begin(name):
    """(network, processor, rows) of a case."""
    if (generation := name.split()[0]) in GENERATIONS:
        network, processor = qwen(generation)
        return deepcopy(network), processor, qwen_rows()
    return *random_model(byte_tokenizer()), rows()


def run(name, changes, directory, stop_at=None):
    """(network, history) of one case; ``stop_at`` is a step, or "reference" for the middle of the reference's pass."""
    config = TrainingConfig.model_validate_json(json.dumps(BASE | changes | {"processes": world()[1]}))
    network, processor, given = begin(name)

    def progress(label, done, _total):
        if done == stop_at or (stop_at == "reference" == label and done == 2):
            raise KeyboardInterrupt

    if name.endswith("second network"):
        reference = ReferenceCopy(network, config)
    else:
        reference = ReferenceCache(directory / "cache", "m0", progress, in_part=2)
    stage = preference_stage("mpo", config, MpoObjective(), reference)
    told = progress if stop_at != "reference" else lambda *_: None
    return network, train(network, processor, given, stage, config, directory / "state", told).history


def main(out):
    """Run every case whole and killed; rank 0 writes histories and weights."""
    for name in CASES:
        begin(name)
    histories = {}
    for name, changes in CASES.items():
        network, history = run(name, changes, out / "whole" / name)
        for stop_at in ("reference", 2) if name == "zero3" else (2,):
            with suppress(KeyboardInterrupt):
                run(name, changes, out / "stopped" / name, stop_at)
        _, resumed = run(name, changes, out / "stopped" / name)
        histories[name] = {"history": history, "resumed": resumed}
        if world()[0] == 0:
            save_file({n: p.detach().contiguous() for n, p in network.named_parameters()}, out / f"{name}.safetensors")
    if world()[0] == 0:
        (out / "histories.json").write_text(json.dumps(histories))
        note_patience(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
