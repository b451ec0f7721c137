"""Answers/s and peak memory of whole GSPO iterations beside TRL's ``GRPOTrainer`` configured as GSPO.

An iteration is a rollout, its rewards and one update. Both sides open the same saved directory, ask the same queries
about images of five tiles, sample equally many answers of equally many tokens with transformers' layers in the same
precision, reward them by the same function, and train everything with the same optimiser; each in a fresh process,
rounds take turns. On a CPU the shape is the network of the profile ``tiny``. Random weights hardly ever end an answer,
so the end of turn is forbidden on both sides, as image and control tokens are. The first iteration and the last (a
checkpoint is written) do not count. Peak memory is the resident set of the process.

Before the rounds, in float32, our side learns from the very answers of the peer's first rollout: advantages and the
norm of the gradient have to be the same. (TRL adds 1e-4 to the standard deviation: rewards are as large as 100.)
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import harness
from benchmarks.train_step import Shape, digits_of, peak_bytes
from components.collect.digits import digit_rows
from components.collect.tokenizer import train_tokenizer
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset, write_dataset
from model.flash.config import ENGLISH_SYSTEM_PROMPT
from model.objectives.config import GspoObjective
from model.training.config import TrainingConfig
from model.training.policy_config import RolloutConfig
from pipelines.profile import load_profile

AIM = 1.3
OBJECTIVE = GspoObjective(epsilon_low=3e-4, epsilon_high=4e-4)
ROLLOUT = RolloutConfig(prompts=8, responses=8, max_new_tokens=64)
ANSWERS = ROLLOUT.prompts * ROLLOUT.responses
SHAPE = Shape(
    "tiny",
    {"canvas": 112, "cells": 4, "mix": dict.fromkeys(("read", "count", "maximum", "locate"), 0.0)},
    ROLLOUT.prompts,
    "eager",  # faster than sdpa in bfloat16 on a CPU, for the peer by a quarter
)
_WARM = 1
_SAME = 1e-4


@dataclass(frozen=True)
class Measurement:
    """One process: answers a second, seconds of an iteration, most memory."""

    speed: float
    seconds: float
    peak_mib: float


def main() -> None:
    """Measure, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    steps, rounds = (5, 2) if options.quick else (14, 5)
    with tempfile.TemporaryDirectory(prefix="fovea-gspo-") as scratch:
        directory = prepare(steps, Path(scratch))
        same = agreement(directory)
        sides = harness.in_turns(rounds, lambda side: measure(side, directory, settings(steps)), _print)
    ours, peer = ([m.speed for m in sides[side]] for side in ("ours", "peer"))
    details = {
        "prompts": ROLLOUT.prompts,
        "responses": ROLLOUT.responses,
        "new_tokens": ROLLOUT.max_new_tokens,
        "steps": steps,
        "same_answers": same,
        **harness.compare_memory({side: [m.peak_mib for m in found] for side, found in sides.items()}),
        "rounds": {side: [asdict(m) for m in found] for side, found in sides.items()},
    }
    ratio = harness.median(ours) / harness.median(peer)
    harness.report(
        harness.result("gspo_iteration", "answers/s", ours, peer, ratio=ratio, aim=AIM, details=details), options
    )


def _print(name: str, run: Measurement) -> None:
    print(f"{name:13} {run.speed:7.2f} answers/s {run.peak_mib:7.0f} MiB", flush=True)


def prepare(steps: int, directory: Path) -> Path:
    """Save the network with random weights as ``model``, and the queries of ``steps`` iterations as ``rows``."""
    from model.families.opening import save_network
    from model.flash.build import build_model

    shape = load_profile(SHAPE.profile).pretrain.model.model_copy(update={"max_tiles": 12})
    rows = list(digit_rows(digits_of(SHAPE, steps * ROLLOUT.prompts))[0])[: steps * ROLLOUT.prompts]
    texts = [message["content"] for row in rows for message in row["messages"]]
    network, processor = build_model(shape, train_tokenizer(texts, 512, ENGLISH_SYSTEM_PROMPT), seed=0)
    save_network(network, processor, directory / "model")
    write_dataset(directory / "rows", rows, shards=1, rejects=[])
    return directory


def settings(steps: int, **changes: Any) -> TrainingConfig:
    """One update an iteration, with the optimiser of the profile's fine-tuning at a rate for policies."""
    given = load_profile(SHAPE.profile).sft.training
    common = {
        **{name: getattr(given, name) for name in ("betas", "eps", "weight_decay", "precision", "threads")},
        "learning_rate": 1e-5,
        "warmup_ratio": 0.0,
        "attention": SHAPE.attention,
        "steps": steps,
        "batch_size": ANSWERS,
        "log_every": 1,
        "checkpoint_every": steps,
    }
    return TrainingConfig.model_validate(common | changes)


def reward(token_ids: Sequence[int]) -> float:
    """Of 100: the share of even ids. Random answers of one group differ in it."""
    return 100 * mean(token % 2 == 0 for token in token_ids)


def agreement(directory: Path) -> dict[str, Any]:
    """The first step of both sides on the same answers, in float32.

    Raises:
        InputError: advantages or gradient differ.
    """
    exact = settings(1, precision="float32")
    (theirs,) = run("peer", directory, exact)["steps"]
    answers, advantages = theirs["rollout"]
    (ours,) = run("ours", directory, exact, answers=answers)["steps"]
    differences = {
        "advantages": max(abs(a - b) for a, b in zip(ours["advantages"], advantages, strict=True)),
        "grad_norm apart": abs(ours["grad_norm"] / theirs["grad_norm"] - 1),
    }
    print(f"same answers in float32: norm of the gradient ours {ours['grad_norm']:.6f}, peer {theirs['grad_norm']:.6f}")
    if max(differences.values()) > _SAME:
        raise InputError(f"gspo_iteration: the sides' first steps differ: {differences}")
    return {"grad_norm": [ours["grad_norm"], theirs["grad_norm"]], **differences}


def measure(side: str, directory: Path, config: TrainingConfig) -> Measurement:
    """Train in a fresh process."""
    answer = run(side, directory, config)
    seconds = [step["seconds"] for step in answer["steps"][_WARM:-1]]
    return Measurement(ANSWERS / mean(seconds), mean(seconds), answer["peak_bytes"] / (1 << 20))


def run(
    side: str, directory: Path, config: TrainingConfig, answers: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """What the process of a side says.

    Raises:
        InputError: it failed; its last line says why.
    """
    job = {"side": side, "directory": str(directory), "config": config.model_dump_json(), "answers": answers}
    return harness.fresh_process("gspo_iteration", side, job)


def worker(job_json: str) -> None:
    """A side's process: train, and print every step and the peak of memory as one last line."""
    job = json.loads(job_json)
    directory, config = Path(job["directory"]), TrainingConfig.model_validate_json(job["config"])
    rows = list(open_dataset(directory / "rows").rows())[: config.steps * ROLLOUT.prompts]
    if job["side"] == "peer":
        steps = train_peer(directory / "model", rows, config)
    else:
        steps = train_ours(directory / "model", rows, config, job["answers"])
    print(json.dumps({"steps": steps, "peak_bytes": peak_bytes()}))


def train_peer(directory: Path, rows: list[Row], config: TrainingConfig) -> list[dict[str, Any]]:
    """TRL, on the queries in the order in which ours takes them."""
    from benchmarks.peers.trl_gspo import train
    from model.families.opening import load_processor
    from model.training.reader import row_order
    from model.training.sampling import sampleable_ids

    processor, at = load_processor(directory), row_order(rows, config)
    size = processor.tokenizer.get_vocab_size()
    allowed = set(sampleable_ids(processor.tokenizer, processor.eos_token_id, size)) - {processor.eos_token_id}
    ordered = [rows[at(position)] for position in range(len(rows))]
    return train(directory, ordered, config, OBJECTIVE, ROLLOUT, reward, sorted(set(range(size)) - allowed))


def train_ours(
    directory: Path, rows: list[Row], config: TrainingConfig, answers: Sequence[Sequence[int]] | None
) -> list[dict[str, Any]]:
    """Our stage as the step ``gspo`` runs it; with ``answers``, on those instead of its own."""
    from model.families.opening import load_network, load_processor
    from model.training.loop import train
    from model.training.policy import policy_stage
    from model.training.policy_iteration import Iteration
    from model.training.policy_rollouts import Judgement
    from model.training.policy_store import RolloutStore
    from model.training.rollout import NetworkSampler, Response

    records: list[dict[str, Any]] = []
    network, processor = load_network(directory, attention=config.attention), load_processor(directory)
    sampler = NetworkSampler(network, processor)
    # Neither side may end an answer.
    sampler._allowed_A = sampler._allowed_A[sampler._allowed_A != processor.eos_token_id]
    if answers is not None:
        given = iter(answers)
        sampler.sample = lambda queries, count, *_: [
            [Response(ids, [0.0] * len(ids), "", "length") for ids in (next(given) for _ in range(count))]
            for _ in queries
        ]

    def judge(judged: Sequence[tuple[Row, Response]]) -> list[Judgement]:
        return [Judgement(reward(response.token_ids)) for _, response in judged]

    with tempfile.TemporaryDirectory() as scratch:
        stage, _ = policy_stage(
            "gspo",
            network,
            sampler,
            judge,
            Path(scratch) / "rollouts",
            training=config,
            objective=OBJECTIVE,
            rollout=ROLLOUT,
        )
        train(network, processor, rows, stage, config, Path(scratch), lambda *_: None, records.append)
        if answers is not None:
            groups = RolloutStore(Path(scratch) / "rollouts").load(0)
            first = Iteration(0, [groups[query] for query in range(ROLLOUT.prompts)], ROLLOUT.responses)
            records[0]["advantages"] = first.advantages.tolist()
    return records


if __name__ == "__main__":
    main()
