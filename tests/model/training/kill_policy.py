"""Learn from rollouts in children that are killed in a given phase: ``kill_policy.py OUT SEED``.

One process imports everything and forks the children. Prints ``{"kills", "started", "same_history", "same_weights",
"same_counts", "asked_again", "never_asked"}`` against a child that nobody killed; ``started`` are the steps of the
checkpoints that the children took up, 0 where there was none.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from threading import Event

import torch
from safetensors.torch import load_file, save_file

from model.flash.build import build_model
from model.training.rollout import NetworkSampler
from tests.model.training.policy_runs import even_share, queries, rollout, run, training
from tests.tiny import byte_tokenizer, tiny_config

CONFIG = training(steps=28, batch_size=4, checkpoint_every=1, precision="bfloat16", drop_path_rate=0.2)
"""Two steps an iteration: every other checkpoint lies in the middle of one."""
PHASES = ("rollout", "reward", "old", "update")
TIMES = {"rollout": 2, "reward": 2, "old": 1, "update": 1}
"""How often a child enters the phase before the time in which it is killed: each leaves a checkpoint behind it."""


def child_run(directory: Path, tell) -> None:
    """Learn, and say before each phase that it begins: ``tell(phase)``."""
    network, processor = build_model(tiny_config(), byte_tokenizer(), seed=0)
    sampler = NetworkSampler(network, processor)
    sample, asked, begun = sampler.sample, directory / "asked.txt", Event()

    def told_sample(given, *rest):
        tell("rollout")
        answers = sample(given, *rest)
        with asked.open("a") as stream:
            stream.writelines(f"{rest[-1]}/{query.row['id']}\n" for query in given)
        return answers

    def told_reward(answers):
        tell("reward")
        return even_share(answers)

    def told_progress(label, done, total):
        if label == "gspo":
            if not begun.is_set():
                begun.set()
                with (directory / "started.txt").open("a") as stream:
                    stream.write(f"{done}\n")
            tell("update")
        elif done == total:  # the second of the two queries is stored: what follows is the pass before the first update
            tell("old")

    sampler.sample = told_sample
    more = {"reward": told_reward, "progress": told_progress, "engine": sampler}
    network, state, memory = run(
        directory / "state", config=CONFIG, plan=rollout(), network=network, processor=processor, rows=queries(), **more
    )
    save_file({n: p.detach().contiguous() for n, p in network.named_parameters()}, directory / "weights.safetensors")
    (directory / "result.json").write_text(json.dumps([state.history, memory.state()]))


def start(directory: Path) -> tuple[int, int]:
    """A child that learns: process id, and a pipe with the phases that it enters."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    status = 1
    try:
        child_run(directory, lambda phase: os.write(writing, bytes([PHASES.index(phase)])))
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def kill_in(directory: Path, phase: str, after: int, delay: float) -> None:
    """A child that is killed in its ``after``-th time (from 0) in a phase, ``delay`` seconds after it began."""
    child, reading = start(directory)
    while (told := os.read(reading, 1)) and (told[0] != PHASES.index(phase) or after):
        after -= told[0] == PHASES.index(phase)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.close(reading)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        raise SystemExit("a child ended before it was killed")


def result(directory: Path) -> tuple[dict[str, torch.Tensor], list]:
    """Weights, and history and counts, that a child left."""
    return load_file(directory / "weights.safetensors"), json.loads((directory / "result.json").read_text())


def main(out: Path, seed: int) -> None:
    """Kill in every phase, twice; compare."""
    torch.set_num_threads(1)
    whole, killed = out / "whole", out / "killed"
    for directory in (whole, killed):
        directory.mkdir(parents=True)
    child, _ = start(whole)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the child that nobody kills failed")
    draw, kills = random.Random(seed), 0
    for phase in PHASES * 2:
        kill_in(killed, phase, TIMES[phase], draw.uniform(0, 0.03))
        kills += 1
    child, _ = start(killed)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the child that was to end failed")
    (weights, (history, counts)), (again, (resumed, counted)) = result(whole), result(killed)
    asked = (killed / "asked.txt").read_text().split()
    found = {
        "kills": kills,
        "started": [int(step) for step in (killed / "started.txt").read_text().split()],
        "same_history": history == resumed,
        "same_weights": all(torch.equal(weights[name], again[name]) for name in weights),
        "same_counts": counts == counted,
        # Answered, and killed before they were stored: at most the part that was under way at each kill.
        "asked_again": len(asked) - len(set(asked)),
        "never_asked": len(set((whole / "asked.txt").read_text().split()) - set(asked)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
