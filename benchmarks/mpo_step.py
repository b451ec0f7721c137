"""Pairs/s and peak memory of our MPO stage beside TRL's ``DPOTrainer`` with the same three losses.

Both sides open the same saved directory and train all of it on the same pairs in the same order, with the same
optimiser, precision, attention of the tower, weights and beta; each in a fresh process, rounds take turns. Images are
cut into 9 or 10 tiles; a chosen answer has 41 tokens, a rejected one 31 to 51.

The reference counts once an epoch on both sides: TRL runs it in every step, ours in one pass before the first, whose
time is spread over the pairs of the epoch, which is as long as the run. ``cached`` is ours from the second epoch or run
on, when the pass is on disk. A step's time runs from the end of the last step, so that waiting for data counts; the
first steps and forward passes, and the last step (a checkpoint is written), do not count. Peak memory is the resident
set of the process.

The first losses of both sides are compared in float32: rewards and delta are 0 then, so that it does not matter that
TRL's ``bco_pair`` has no delta; and its generation term, a mean over the tokens of the batch, is the mean over answers
because all chosen answers are equally long.
"""

import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.train_step import Shape, digits_of, peak_bytes
from components.collect.digits import digit_rows
from components.collect.tokenizer import train_tokenizer
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset, write_dataset
from model.flash.config import ENGLISH_SYSTEM_PROMPT
from model.objectives.config import MpoObjective
from model.training.config import TrainingConfig
from pipelines.profile import load_profile

AIM = 1.5
PAIRS_IN_STEP = 8
_DIGITS = 40
_OTHERS = dict.fromkeys(("read", "count", "maximum", "locate"), 0.0)
SHAPE = Shape(
    "tiny",
    {"canvas": 168, "digits": [_DIGITS] * 2, "cells": 7, "scale": [1.0, 1.7], "wide_share": 0.5, "mix": _OTHERS},
    PAIRS_IN_STEP,
    "eager",  # faster than sdpa in bfloat16 on a CPU
)
_WARM_STEPS = 3
_SAME_LOSS = 1e-4


@dataclass(frozen=True)
class Measurement:
    """One process: pairs a second in steps alone and with the reference pass, most memory, loss of the first step."""

    cached: float
    speed: float
    peak_mib: float
    first_loss: float


def main() -> None:
    """Measure, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    steps, rounds = (10, 2) if options.quick else (28, 5)
    with tempfile.TemporaryDirectory(prefix="fovea-mpo-step-") as scratch:
        directory = prepare(steps, Path(scratch))
        exact = settings(1, precision="float32", attention="sdpa")
        first = {side: measure(side, directory, exact).first_loss for side in ("ours", "peer")}
        difference = abs(first["ours"] - first["peer"])
        print(f"first loss in float32: ours {first['ours']:.6f}, peer {first['peer']:.6f}", flush=True)
        if difference > _SAME_LOSS:
            raise InputError(f"mpo_step: the sides' first losses differ by {difference:.2g}")
        sides = harness.in_turns(rounds, lambda side: measure(side, directory, settings(steps)), _print)
    ours, peer = ([m.speed for m in sides[side]] for side in ("ours", "peer"))
    cached = harness.median([m.cached for m in sides["ours"]])
    ratio = harness.median(ours) / harness.median(peer)
    details = {
        "pairs_in_step": PAIRS_IN_STEP,
        "steps": steps,
        "first_loss": first,
        "cached_reference": {"ours": round(cached, 4), "ratio": round(cached / harness.median(peer), 4)},
        **harness.compare_memory({side: [m.peak_mib for m in found] for side, found in sides.items()}),
        "rounds": {side: [asdict(m) for m in found] for side, found in sides.items()},
    }
    print(f"with the reference on disk: {cached:.2f} pairs/s, {cached / harness.median(peer):.2f} times the peer")
    harness.report(harness.result("mpo_step", "pairs/s", ours, peer, ratio=ratio, aim=AIM, details=details), options)


def _print(name: str, run: Measurement) -> None:
    print(f"{name:13} {run.speed:7.2f} pairs/s {run.peak_mib:7.0f} MiB", flush=True)


def prepare(steps: int, directory: Path) -> Path:
    """Save the network with random weights as ``model``, and the pairs of ``steps`` steps as ``rows``."""
    from model.families.opening import save_network
    from model.flash.build import build_model

    shape = load_profile(SHAPE.profile).pretrain.model.model_copy(update={"max_tiles": 12})
    rows = [paired(row) for row in digit_rows(digits_of(SHAPE, steps * PAIRS_IN_STEP))[0]]
    texts = [message["content"] for row in rows for message in row["messages"]]
    network, processor = build_model(shape, train_tokenizer(texts, 512, ENGLISH_SYSTEM_PROMPT), seed=0)
    save_network(network, processor, directory / "model")
    write_dataset(directory / "rows", rows, shards=1, rejects=[])
    return directory


def paired(row: Row) -> Row:
    """The transcription as the chosen answer; the rejected one reads some digits wrong, and too few or too many."""
    chosen = row["messages"][-1]["content"]
    draw = random.Random(row["id"])
    digits = [draw.choice("0123456789") if draw.random() < 0.3 else digit for digit in chosen.split()]
    length = draw.randint(_DIGITS * 3 // 4, _DIGITS * 5 // 4)
    digits = [*digits, *(draw.choice("0123456789") for _ in range(length))][:length]
    return {**row, "chosen": chosen, "rejected": " ".join(digits)}


def settings(steps: int, **changes: Any) -> TrainingConfig:
    """The optimiser of the profile's fine-tuning at a rate for preferences."""
    given = load_profile(SHAPE.profile).sft.training
    common = {
        **{name: getattr(given, name) for name in ("betas", "eps", "weight_decay", "precision", "threads")},
        "learning_rate": 1e-5,
        "attention": SHAPE.attention,
        "steps": steps,
        "batch_size": PAIRS_IN_STEP,
        "log_every": 1,
        "checkpoint_every": steps,
    }
    return TrainingConfig.model_validate(common | changes)


def measure(side: str, directory: Path, config: TrainingConfig) -> Measurement:
    """Train in a fresh process.

    Raises:
        InputError: the process failed; its last line says why.
    """
    job = {"side": side, "directory": str(directory), "config": config.model_dump_json()}
    answer = harness.fresh_process("mpo_step", side, job)
    counted = [step["seconds"] for step in answer["steps"][_WARM_STEPS:-1]] or [float("nan")]
    of_pair = sum(counted) / len(counted) / config.batch_size
    reference = answer["reference_seconds"] / (config.steps * config.batch_size)
    return Measurement(
        cached=1 / of_pair,
        speed=1 / (of_pair + reference),
        peak_mib=answer["peak_bytes"] / (1 << 20),
        first_loss=answer["steps"][0]["loss"],
    )


def worker(job_json: str) -> None:
    """A side's process: train, and print every step and the peak of memory as one last line."""
    job = json.loads(job_json)
    directory, config = Path(job["directory"]), TrainingConfig.model_validate_json(job["config"])
    rows = list(open_dataset(directory / "rows").rows())[: config.steps * config.batch_size]
    seconds = 0.0
    if job["side"] == "peer":
        from benchmarks.peers.trl_dpo import train

        steps = train(directory / "model", rows_in_order(rows, config), config, MpoObjective())
    else:
        steps, seconds = train_ours(directory / "model", rows, config)
    print(json.dumps({"steps": steps, "reference_seconds": seconds, "peak_bytes": peak_bytes()}))


def rows_in_order(rows: list[Row], config: TrainingConfig) -> list[Row]:
    """The rows as our steps take them."""
    from model.training.reader import row_order

    at = row_order(rows, config)
    return [rows[at(position)] for position in range(config.steps * config.batch_size)]


def train_ours(directory: Path, rows: list[Row], config: TrainingConfig) -> tuple[list[dict[str, Any]], float]:
    """Our stage as the step ``mpo`` runs it: what it logged of every step, and the seconds of the reference pass.

    As with steps, the first forward passes do not count: the others stand for them.
    """
    from model.families.opening import load_network, load_processor
    from model.training.loop import train
    from model.training.preferences import preference_stage
    from model.training.references import ReferenceCache

    records: list[dict[str, Any]] = []
    ended: list[float] = []
    network = load_network(directory, attention=config.attention)
    with tempfile.TemporaryDirectory() as scratch:
        cache = ReferenceCache(Path(scratch) / "references", "benchmark", lambda *_: None)
        stage = preference_stage("mpo", config, MpoObjective(), cache)

        def timed(engine: Any, source: Any) -> None:
            evaluate = engine.evaluate

            def told(*given: Any) -> Any:
                found = evaluate(*given)
                ended.append(time.perf_counter())
                return found

            engine.evaluate = told
            cache.fill(engine, source)
            engine.evaluate = evaluate

        given = (network, load_processor(directory), rows, replace(stage, prepare=timed), config)
        train(*given, Path(scratch) / "state", lambda *_: None, records.append)
    warm = ended[min(_WARM_STEPS, len(ended)) - 1 :]
    return records, (warm[-1] - warm[0]) / max(1, len(warm) - 1) * len(ended)


if __name__ == "__main__":
    main()
