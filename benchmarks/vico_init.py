"""How ``vico`` should start, and on what: divergence from the full model after equally many steps.

The paper does not say how the second projector starts. Ours begins as the pooled first projector
(model/flash/projectors.py); the peer is torch's random start. Beside them stand the first projector on half the
resolution, ours after fitting the second projector alone to the means of the rows that it stands for
(model/training/projector_warmup.py), and ours on questions alone, without transcriptions. Divergences are in nats per
answer token, with every tile compressed, on rows of both kinds that no variant trained on; ``ratio`` is random /
pooled. Reads what ``make demo`` left in ``out/line``: the model that vico starts from, and the rows.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import harness
from benchmarks.flash_training import start_of
from components.row_shares import mixed
from components.vico.config import VicoConfig
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from model.families.opening import load_network, load_processor
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from model.objectives.vico import consistency_scores
from model.training.batches import pad
from model.training.consistency import (
    ConsistencyBatch,
    FrozenReference,
    consistency_batches,
    consistency_stage,
    require_flash,
)
from model.training.loop import train
from model.training.projector_warmup import warmup_stage
from model.training.reader import Drawn, sample_of_row
from pipelines.profile import load_profile

AIM = 1.0
"""Not worse than random."""
LINE = Path("out/line")
FITTED, QUESTIONS = "pooled, fitted", "pooled, questions alone"
VARIANTS = ("pooled", "downsampled", "random", FITTED, QUESTIONS)
_STEPS, _FIT, _SEEDS = 60, 60, (1, 2, 3)
_QUICK_STEPS, _QUICK_FIT, _QUICK_SEEDS = 24, 40, (1,)
_HELDOUT, _BATCH, _THREADS = 192, 32, 1
"""Rows that are scored, and scored together."""


def main() -> int:
    """Measure, print, store."""
    return harness.run(__doc__, lambda options: measure(options.quick))


def measure(quick: bool) -> harness.Result:
    """Compare the variants; the figure is that of ours and of the random start."""
    found = compare(LINE, quick)
    print(json.dumps(found["curves"], indent=1))
    ours, peer = found["final"]["pooled"], found["final"]["random"]
    ratio = harness.median(peer) / harness.median(ours)
    return harness.result("vico_init", "nats per token", ours, peer, ratio=ratio, aim=AIM, details=found)


def compare(line: Path, quick: bool) -> dict:
    """Curves and final divergences of every variant and seed."""
    start, data = start_of(line), line / "curate"
    if not data.is_dir():
        raise InputError(f"{data}: no such directory; run make demo first")
    config = load_profile("tiny").vico
    steps, fit, seeds = (_QUICK_STEPS, _QUICK_FIT, _QUICK_SEEDS) if quick else (_STEPS, _FIT, _SEEDS)
    questions, transcriptions = (list(open_dataset(data / name).rows()) for name in ("questions", "transcriptions"))
    rows = mixed(questions, transcriptions, config.transcription_share)
    taught, heldout = apart([row for row in rows if row["media"]])
    found: dict = {"steps": steps, "fit_steps": fit, "curves": {}, "final": {}, "seconds": {}}
    asked = [row for row in taught if row["task"] in {question["task"] for question in questions}]
    for name in VARIANTS:
        for seed in seeds:
            begun, rows = time.perf_counter(), asked if name == QUESTIONS else taught
            fitting = fit if name == FITTED else 0
            curve = one_curve(config, start, rows, heldout, name.split(",")[0], fitting, steps, seed)
            found["seconds"].setdefault(name, []).append(round(time.perf_counter() - begun, 1))
            found["curves"].setdefault(name, []).append(curve)
            print(f"{name}, seed {seed}: {curve}", file=sys.stderr)
            found["final"].setdefault(name, []).append(curve[str(steps)])
    return found


def apart(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and rows held out from all over the dataset: its families may stand one after the other."""
    every = max(2, len(rows) // _HELDOUT)
    return [row for place, row in enumerate(rows) if place % every], list(rows[::every][:_HELDOUT])


def one_curve(
    config: VicoConfig,
    start: Path,
    taught: Sequence[Row],
    heldout: Sequence[Row],
    init: str,
    fit: int,
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Held-out divergence by step: 0 is before the first step of ``vico`` and after the fit."""
    training = config.training.model_copy(
        update={"steps": steps, "seed": seed, "checkpoint_every": steps, "threads": _THREADS}
    )
    network, processor = require_flash(load_network(start), load_processor(start), "vico_init")
    reference = FrozenReference(load_network(start), training)
    network.add_flash(seed, init)
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        if fit:
            fitting = training.model_copy(update={"steps": fit, "checkpoint_every": fit})
            train(network, processor, taught, warmup_stage(), fitting, state / "fit", lambda *_: None)
        curve = {"0": divergence(network, processor, reference, heldout, training.loss_chunk)}
        stage = consistency_stage(reference, processor, config.objective, training)
        train(network, processor, taught, stage, training, state / "vico", lambda *_: None)
    curve[str(steps)] = divergence(network, processor, reference, heldout, training.loss_chunk)
    return curve


@torch.no_grad()
def divergence(
    network: FlashModel, processor: FlashProcessor, reference: FrozenReference, rows: Sequence[Row], chunk: int
) -> float:
    """Mean over rows of the mean divergence of their answer tokens, every tile compressed."""
    lay = partial(pad, averaging="sample", pad_id=processor.eos_token_id)
    collate = consistency_batches(processor, (0.0625,), 0)
    total = 0.0
    for first in range(0, len(rows), _BATCH):
        samples = [sample_of_row(processor, row) for row in rows[first : first + _BATCH]]
        batch = collate(samples, [Drawn(0, index, index) for index in range(len(samples))], lay)
        assert isinstance(batch, ConsistencyBatch)
        fixed = reference.hidden(batch.reference, network)
        states = network.hidden(batch.inputs).states
        scores = consistency_scores(states, network.head, fixed, reference.head, batch.targets, chunk)
        total += float((scores.divergences * batch.weights).sum())
    return round(total / len(rows), 4)


if __name__ == "__main__":
    sys.exit(main())
