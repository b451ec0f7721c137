"""What two ranks of one torchrun do for test_policy_distributed.py: learn from rollouts in several ways."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.flash.build import build_model
from model.training import rollout as rollouts
from model.training.engine import world
from model.training.stopping import Interrupted, Stopped
from tests.model.training.policy_runs import even_share, queries, rollout, run, training
from tests.model.training.two_ranks import note_patience
from tests.tiny import byte_tokenizer, tiny_config

CASES = {
    "zero2": {"zero": {"stage": 2}},  # first: here DeepSpeed joins the ranks, in the other modules accelerate does
    "copies": {},
    "zero3": {"zero": {"stage": 3}},
    "zero3 half": {"zero": {"stage": 3}, "precision": "bfloat16"},
}
ASKED_TO_STOP = ("copies", "zero3")
PLAN = {"prompts": 4, "responses": 4, "max_new_tokens": 6, "kept_together": 1}
SETTINGS = {"steps": 6, "batch_size": 8, "micro_batch_size": 3, "learning_rate": 1e-4, "checkpoint_every": 3}
"""Two steps an iteration; checkpoints after its first step and after its second."""


class Killed(BaseException):
    """Stands for the end of all ranks."""


def unequal(answers):
    """One query has equal rewards, so that one rank has a micro-batch that teaches nothing."""
    judged = even_share(answers)
    equal = even_share(answers[:1])[0]
    return [equal if row["id"] == "q3" else one for (row, _), one in zip(answers, judged, strict=True)]


def learn(changes: dict, state_dir: Path, stop_at: int | None = None):
    """(network, state, memory) of one case."""

    def progress(_label, done, total):
        if (done, total) == (stop_at, SETTINGS["steps"]):
            raise Killed

    config = training(**SETTINGS | changes | {"processes": world()[1]})
    network, processor = build_model(tiny_config(), byte_tokenizer(), seed=0)
    return run(
        state_dir,
        config=config,
        plan=rollout(**PLAN),
        rows=queries(6),
        reward=unequal,
        network=network,
        processor=processor,
        progress=progress,
    )


def learn_asked_to_stop(changes: dict, state_dir: Path) -> str:
    """Rank 1 alone is asked to stop, by its 14th token, in the second iteration; what this rank says then."""
    draw, tokens = rollouts.draw, iter(range(14))

    def asking(*given):
        if next(tokens, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*given)

    if world()[0] == 1:
        rollouts.draw = asking
    try:
        learn(changes, state_dir)
    except Stopped as stopped:
        return str(stopped)
    finally:
        rollouts.draw = draw
    return "did not stop"


def learn_without_new_weights(changes: dict, state_dir: Path) -> str:
    """The first rank, which alone brings the weights to the sampler, gives up; what this rank says then."""
    refresh = rollouts.NetworkSampler.refresh

    def giving_up(*_given):
        raise Interrupted

    rollouts.NetworkSampler.refresh = giving_up
    try:
        learn(changes, state_dir)
    except Stopped as stopped:
        return str(stopped)
    finally:
        rollouts.NetworkSampler.refresh = refresh
    return "did not stop"


def main(out: Path) -> None:
    """Run every case whole, stopped in the middle of an iteration, and asked to stop in a rollout; rank 0 notes it."""
    found = {}
    for name, changes in CASES.items():
        network, state, memory = learn(changes, out / "whole" / name)
        try:
            learn(changes, out / "stopped" / name, stop_at=4)
        except Killed:
            again, resumed, counted = learn(changes, out / "stopped" / name)
        same = all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
        found[name] = {
            "history": state.history,
            "resumed": resumed.history,
            "same_weights": same,
            "same_counts": memory.state() == counted.state(),
        }
        if name in ASKED_TO_STOP:
            found[name]["said"] = learn_asked_to_stop(changes, out / "asked" / name)
            _, resumed, counted = learn(changes, out / "asked" / name)
            found[name]["after_request"] = [resumed.history, memory.state() == counted.state()]
            found[name]["without_weights"] = learn_without_new_weights(changes, out / "without" / name)
        if world()[0] == 0:
            save_file({n: p.detach().contiguous() for n, p in network.named_parameters()}, out / f"{name}.safetensors")
    if world()[0] == 0:
        (out / "found.json").write_text(json.dumps(found))
        note_patience(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
