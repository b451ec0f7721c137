"""Train in children that are killed at random moments, and then in one that ends: ``kill_training.py OUT KILLS SEED``.

One process imports everything and forks the children, so that a kill costs a moment and not an import. Prints
``{"kills", "resumed_from", "same_history", "same_weights"}`` against a child that nobody killed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from model.flash.build import build_model
from model.training.config import PackingConfig, TrainingConfig
from model.training.loop import supervised_stage, train
from tests.tiny import byte_tokenizer, picture, question_row, tiny_config

CONFIG = TrainingConfig(
    learning_rate=1e-3,
    steps=24,
    batch_size=2,
    precision="bfloat16",
    packing=PackingConfig(max_tokens=400, max_units=9, lookahead=12),
    text_to_multimodal=(1, 2),
    jpeg_quality=(75, 100),
    drop_path_rate=0.2,
    log_every=1,
    checkpoint_every=3,
    threads=1,
)


def rows():
    """Text-only rows and rows with one to five tiles."""
    rng = np.random.default_rng(7)
    grids = [[], [(1, 1)], [(2, 2)], [(1, 1), (2, 1)]]
    return [question_row(f"r{i}", [picture(rng, *g) for g in grids[i % 4]], "!ab" * (1 + i % 5)) for i in range(30)]


def train_in_child(directory: Path) -> tuple[int, int]:
    """A child that trains and leaves weights and history in ``directory``: process id, and a pipe with its steps."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    status = 1
    try:
        network, processor = build_model(tiny_config(), byte_tokenizer(), seed=0)
        stage = supervised_stage("sft", CONFIG)
        tell = lambda _label, done, _total: os.write(writing, bytes([done]))  # noqa: E731
        state = train(network, processor, rows(), stage, CONFIG, directory / "state", tell)
        save_file(
            {n: p.detach().contiguous() for n, p in network.named_parameters()}, directory / "weights.safetensors"
        )
        (directory / "history.json").write_text(json.dumps(state.history))
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def result(directory: Path) -> tuple[dict[str, torch.Tensor], list]:
    """Weights and history that a child left."""
    return load_file(directory / "weights.safetensors"), json.loads((directory / "history.json").read_text())


def wait_for(step: int, reading: int) -> None:
    """Return when the child has done ``step`` steps, or has ended."""
    while (told := os.read(reading, 1)) and told[0] < step:
        pass


def main(out: Path, kills: int, seed: int) -> None:
    """Kill, resume, compare."""
    torch.set_num_threads(1)
    whole, killed = out / "whole", out / "killed"
    for directory in (whole, killed):
        directory.mkdir(parents=True)
    began = time.monotonic()
    child, _ = train_in_child(whole)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the child that nobody kills failed")
    step_seconds = (time.monotonic() - began) / CONFIG.steps
    draw, resumed_from = random.Random(seed), []
    for step in sorted(draw.randrange(CONFIG.steps - 1) for _ in range(kills)):
        child, reading = train_in_child(killed)
        wait_for(step, reading)
        # Anywhere in the step that follows: in the loss, the update, or the writing of a checkpoint.
        time.sleep(draw.uniform(0, step_seconds))
        os.kill(child, signal.SIGKILL)
        os.close(reading)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            raise SystemExit("a child ended before it was killed")
        resumed_from.append(max((int(p.name[-8:]) for p in killed.glob("state/checkpoint-*")), default=0))
    child, _ = train_in_child(killed)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the child that was to end failed")
    (weights, history), (again, resumed) = result(whole), result(killed)
    same = all(torch.equal(weights[name], again[name]) for name in weights)
    found = {"resumed_from": resumed_from, "same_history": history == resumed, "same_weights": same}
    print(json.dumps({"kills": len(resumed_from), **found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
