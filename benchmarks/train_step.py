"""Tokens/s and peak memory of our training loop beside a plain ``transformers.Trainer``, and what each option gives.

Both sides open the same saved directory, train all of it on the same rows with the same optimiser, precision,
attention for padded rows and rows in a step, each in a fresh process; rounds take turns. Ours packs; the peer
(``peers/hf_trainer.py``) pads. On a CPU: the network and rows of the profile ``tiny``. Where a GPU is: the shape of
InternVL3.5-1B on larger canvases, with MFU. Tokens are real ones; a step's time runs from the end of the last step, so
that waiting for data counts; the first steps and the last (a checkpoint is written) do not count. Peak memory is the
resident set of the whole process on a CPU, allocated memory on a GPU.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import harness
from components.collect.config import DigitsConfig
from components.collect.digits import FAMILIES, digit_rows
from components.collect.tokenizer import train_tokenizer
from model.data.errors import InputError
from model.data.shards import open_dataset, write_dataset
from model.flash.config import ENGLISH_SYSTEM_PROMPT, ModelConfig
from model.training.config import TrainingConfig
from pipelines.profile import load_profile

AIM = 1.0
VOCABULARY = 32768
_WARM_STEPS = 3
Overrides = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What is trained: a profile's network on rows of digits, so many in a step; ``attention`` is that of padded rows
    and of the tower, on both sides."""

    profile: str
    digits: Overrides
    rows_in_step: int
    attention: str


TINY = Shape("tiny", {}, 64, "eager")  # faster than sdpa in bfloat16 on a CPU
# A canvas of 896 is 4 tiles and a thumbnail, a wide one 8 and a thumbnail: 1,280 and 2,304 visual tokens.
GPU = Shape("internvl3_5_1b", {"canvas": 896, "wide_share": 0.5, "scale": [8.0, 20.0]}, 8, "sdpa")
# Answers of some 80 tokens, twelve digits and more, some with boxes: shorter ones leave too few targets for logits to
# weigh.
LONG_ANSWERS = Shape(
    "tiny",
    {"digits": [12, 16], "cells": 4, "scale": [1.0, 1.7], "boxed_share": 1.0}
    | {"mix": {"read": 0.0, "count": 0.0, "maximum": 0.0, "locate": 0.0}},
    48,
    "eager",
)


@dataclass(frozen=True)
class Prepared:
    """A saved model, its rows as a dataset, and the mean tokens and most visual units of a row."""

    model: Path
    rows: Path
    tokens: float
    units: int


@dataclass(frozen=True)
class Measurement:
    """One process: real tokens a second, most bytes held, MFU where it is known, tokens and targets of all steps."""

    speed: float
    peak_mib: float
    mfu: float | None
    tokens: int
    targets: int


def main() -> None:
    """Measure, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    gpu = _has_gpu()
    shape = GPU if gpu else TINY
    steps, rounds = (14, 2) if options.quick else (34, 5)
    with tempfile.TemporaryDirectory(prefix="fovea-train-step-") as scratch:
        prepared = prepare(shape, steps, Path(scratch) / "plain")
        base = training(shape, prepared, steps)
        sides = harness.in_turns(rounds, lambda side: measure(side, prepared, base), _print)
        table = option_table(shape, prepared, steps, compiled=not options.quick)
        table += loss_table(shape if gpu else LONG_ANSWERS, Path(scratch) / "loss", None if gpu else VOCABULARY)
    ours, peer = ([m.speed for m in sides[side]] for side in ("ours", "peer"))
    details = {
        "shape": shape.profile,
        "rows_in_step": shape.rows_in_step,
        "steps": steps,
        **harness.compare_memory({side: [m.peak_mib for m in found] for side, found in sides.items()}),
        "mfu": _mfu(sides["ours"], ours, peer),
        "options": table,
    }
    ratio = harness.median(ours) / harness.median(peer)
    harness.report(harness.result("train_step", "tokens/s", ours, peer, ratio=ratio, aim=AIM, details=details), options)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def prepare(shape: Shape, steps: int, directory: Path, vocabulary: int | None = None) -> Prepared:
    """Save the shape's network with random weights, and as many rows as ``steps`` padded steps take.

    Args:
        shape: network, rows, rows in a step.
        steps: of the runs that will follow.
        directory: where to.
        vocabulary: rows of the embedding, the further ones unused; those of the profile when None.
    """
    from model.families.opening import save_network
    from model.flash.build import build_model

    profile = load_profile(shape.profile)
    rows = list(digit_rows(digits_of(shape, -(-steps * shape.rows_in_step // len(FAMILIES))))[0])
    texts = (message["content"] for row in rows for message in row["messages"])
    tokenizer = train_tokenizer(texts, 512, ENGLISH_SYSTEM_PROMPT)
    network, processor = build_model(_random_weights(profile.pretrain.model, vocabulary), tokenizer, seed=0)
    save_network(network, processor, directory / "model")
    sizes = [processor.measure(row) for row in rows]
    write_dataset(directory / "rows", rows, shards=1, rejects=[])
    return Prepared(
        directory / "model",
        directory / "rows",
        mean(size.tokens for size in sizes),
        max(size.units for size in sizes),
    )


def digits_of(shape: Shape, count: int) -> DigitsConfig:
    """The corpus of the profile ``tiny`` with ``count`` rows of each family, on the shape's canvases."""
    given = load_profile("tiny").collect.digits.model_dump(mode="json")
    counts = {"transcriptions": count, "questions": count, "mix": {}}
    return DigitsConfig.model_validate(given | counts | shape.digits)


def _random_weights(model: ModelConfig, vocabulary: int | None) -> ModelConfig:
    changes: Overrides = {"vision_checkpoint": None, "language_checkpoint": None}
    if vocabulary is not None:
        changes["language"] = model.language.model_copy(update={"vocab_size": vocabulary})
    return model.model_copy(update=changes)


def training(shape: Shape, prepared: Prepared, steps: int, **changes: Any) -> TrainingConfig:
    """The profile's optimiser on packs of about ``rows_in_step`` rows, or what ``changes`` says."""
    settings = load_profile(shape.profile).pretrain.training
    packing = {
        "max_tokens": round(prepared.tokens * shape.rows_in_step),
        "max_units": prepared.units * shape.rows_in_step,
    }
    common = {
        **{name: getattr(settings, name) for name in ("learning_rate", "betas", "eps", "weight_decay", "precision")},
        "attention": shape.attention,
        "loss_averaging": "token",
        "drop_path_rate": 0.0,  # the peer has none
        "steps": steps,
        "batch_size": 1,
        "packing": packing,
        "log_every": 1,
        "checkpoint_every": steps,
    }
    return TrainingConfig.model_validate(common | changes)


def padded(shape: Shape) -> Overrides:
    """Rows padded to the longest of a step instead."""
    return {"packing": None, "batch_size": shape.rows_in_step}


def option_table(shape: Shape, prepared: Prepared, steps: int, *, compiled: bool) -> list[Overrides]:
    """One process for each option, and its gain over the process without it."""
    runs: dict[str, Overrides] = {
        "packs": {},
        "padded rows": padded(shape),
        "activations of the language model again": {"activation_checkpointing": "language"},
        "activations of the tower again": {"activation_checkpointing": "vision"},
        "all activations again": {"activation_checkpointing": "all"},
    }
    if compiled:
        runs["compiled layers"] = {"compile": True}
    found = _measure_all(prepared, {name: training(shape, prepared, steps, **run) for name, run in runs.items()})
    against = dict.fromkeys(runs, "packs") | {"packs": "padded rows"}
    return [_gain(found, name, other) for name, other in against.items() if name != "padded rows"]


def loss_table(shape: Shape, directory: Path, vocabulary: int | None) -> list[Overrides]:
    """The same for the loss, on long answers in a vocabulary of ordinary size."""
    steps = _WARM_STEPS + 4
    prepared = prepare(shape, steps, directory, vocabulary)
    chunks = {"logits of all targets at once": 1 << 30, "logits of 128 targets at a time": 128}
    found = _measure_all(
        prepared, {name: training(shape, prepared, steps, loss_chunk=chunk) for name, chunk in chunks.items()}
    )
    whole, chunked = chunks
    return [_gain(found, chunked, whole)]


def _measure_all(prepared: Prepared, configs: dict[str, TrainingConfig]) -> dict[str, Measurement]:
    found = {}
    for name, config in configs.items():
        found[name] = measure("ours", prepared, config)
        _print(name, found[name])
    return found


def _gain(found: dict[str, Measurement], name: str, other: str) -> Overrides:
    run, base = found[name], found[other]
    return {
        "option": name,
        "against": other,
        "tokens_per_second": [round(run.speed, 1), round(base.speed, 1)],
        "peak_mib": [round(run.peak_mib), round(base.peak_mib)],
        "speed_ratio": round(run.speed / base.speed, 4),
        "peak_mib_saved": round(base.peak_mib - run.peak_mib),
    }


def measure(side: str, prepared: Prepared, config: TrainingConfig) -> Measurement:
    """Train in a fresh process.

    Raises:
        InputError: the process failed; its last line says why.
    """
    if side == "peer":
        rows = round(config.packing.max_tokens / prepared.tokens) if config.packing else config.batch_size
        config = config.model_copy(update={"packing": None, "batch_size": rows})
    job = {"side": side, "model": str(prepared.model), "rows": str(prepared.rows), "config": config.model_dump_json()}
    answer = harness.fresh_process("train_step", side, job)
    counted = answer["steps"][_WARM_STEPS:-1]
    speed = sum(step["tokens"] for step in counted) / sum(step["seconds"] for step in counted)
    known = [step["mfu"] for step in counted if step.get("mfu")]
    return Measurement(
        speed,
        answer["peak_bytes"] / (1 << 20),
        mean(known) if known else None,
        sum(step["tokens"] for step in answer["steps"]),
        sum(step["targets"] for step in answer["steps"]),
    )


def worker(job_json: str) -> None:
    """A side's process: train, and print every step and the peak of memory as one last line."""
    job = json.loads(job_json)
    rows = list(open_dataset(Path(job["rows"])).rows())
    run: Callable[..., list[dict[str, Any]]]
    if job["side"] == "peer":
        from benchmarks.peers.hf_trainer import train as run
    else:
        run = train_ours
    steps = run(Path(job["model"]), rows, TrainingConfig.model_validate_json(job["config"]))
    print(json.dumps({"steps": steps, "peak_bytes": peak_bytes()}))


def train_ours(directory: Path, rows: list[Any], config: TrainingConfig) -> list[dict[str, Any]]:
    """Our loop as a training step runs it; what it logged of every step."""
    from model.families.opening import load_network, load_processor
    from model.training.loop import supervised_stage, train

    records: list[dict[str, Any]] = []
    network = load_network(directory, attention=config.attention)
    processor = load_processor(directory)
    with tempfile.TemporaryDirectory() as state:
        stage = supervised_stage("train_step", config)
        train(network, processor, rows, stage, config, Path(state), lambda *_: None, records.append)
    return records


def peak_bytes() -> int:
    """Most memory that this process held: allocated on the GPU, or resident."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_peak()


def resident_peak() -> int:
    """Most bytes of this process that were in memory.

    Not ``ru_maxrss``, which starts at what the parent process held when it started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise InputError("/proc/self/status: no VmHWM")


def _mfu(runs: list[Measurement], ours: list[float], peer: list[float]) -> dict[str, float] | None:
    """Ours as logged; the peer's from its speed, as the same tokens need the same operations."""
    known = [run.mfu for run in runs if run.mfu is not None]
    if not known:
        return None
    share = harness.median(known)
    return {"ours": round(share, 4), "peer": round(share * harness.median(peer) / harness.median(ours), 4)}


def _print(name: str, run: Measurement) -> None:
    mfu = "" if run.mfu is None else f"   MFU {run.mfu:.3f}"
    print(f"{name:48} {run.speed:8.0f} tokens/s   {run.peak_mib:7.0f} MiB{mfu}", flush=True)


if __name__ == "__main__":
    main()
