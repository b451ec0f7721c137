"""Seconds to write and to load a training checkpoint, beside one that stores what InternVL's public trainer stores.

Both sides hold the same network (profile ``tiny``), its AdamW moments after real steps, and a packer in the midst of
the same stream: rows of the mix ``text-and-tiles`` as chat rows, tiles of 56 pixels (the network's own), budgets of 96
tiles and 2,400 tokens, which bind as the published ones do. Ours keeps stream positions, and its load includes reading
and measuring the waiting rows again. The peer (``peers/official_checkpoint.py``) keeps one dataloader worker's 20 open
buffers, about 0.1 GB, of which at most four copies exist at a time: under 1 GB. ``ratio`` is peer / ours in seconds of
write and load together.

Neither side syncs what it writes to the disk, and both load from the page cache. How long a sync takes after a write is
measured apart and counts on neither side. Figures under ``computed`` are computed, not measured.
"""

import copy
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import harness, packing_mix
from benchmarks.peers import official_checkpoint
from benchmarks.peers.first_fit import MAX_BUFFER_SIZE, OpenPack, first_fit
from benchmarks.peers.official_checkpoint import PackedDataset, buffer_bytes
from components.collect.tokenizer import train_tokenizer
from model.data.schema import Row, image_media, scorer
from model.families.interface import Sample
from model.flash.build import build_model
from model.flash.config import ENGLISH_SYSTEM_PROMPT, ModelConfig
from model.flash.network import FlashModel
from model.flash.processor import FlashProcessor
from model.training.attention import use_varlen_attention
from model.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint
from model.training.config import PackingConfig, TrainingConfig
from model.training.engine import PlainEngine, adam_state
from model.training.loop import learning_rate, make_deterministic, supervised_loss
from model.training.packing import Packer
from model.training.reader import BatchReader, row_order, sample_of_row
from pipelines.profile import load_profile

AIM = 1.0
_ROUNDS, _QUICK_ROUNDS = 15, 5
_WORDS = ("red", "green", "blue", "one", "two", "three", "left", "right", "above", "below")
_MIX_SCALE = 16
PUBLISHED_SIDE = 448
PARAMETERS_8B = 8.5e9
"""Of InternVL3.5-8B (arXiv 2508.18265, table 1)."""
_STATE_BYTES = 12
"""Of a trained parameter on both sides: weight and two moments in float32."""


@dataclass(frozen=True)
class Scale:
    """How large the packers are: rows of the dataset, budgets of a pack, waiting rows (ours), open buffers (peer)."""

    rows: int
    max_tokens: int
    max_tiles: int
    lookahead: int
    buffers: int
    warm_packs: int
    """Packs that the peer yields before anything is measured, so that its buffers are those of a long run."""


MEASURED = Scale(
    rows=1000, max_tokens=2400, max_tiles=96, lookahead=packing_mix.LOOKAHEAD, buffers=MAX_BUFFER_SIZE, warm_packs=60
)


@dataclass(frozen=True)
class Cost:
    """One checkpoint, written, synced and loaded: seconds of each, and its bytes."""

    write: float
    sync: float
    load: float
    size: int

    @property
    def seconds(self) -> float:
        """Of writing and loading."""
        return self.write + self.load


def main() -> None:
    """Measure, print, store."""
    options = harness.arguments(__doc__.splitlines()[0])
    make_deterministic(threads=1)
    network, rows, processor = prepare(MEASURED.rows, load_profile("tiny").pretrain.model)
    ours, peer = Ours(network, processor, rows, MEASURED), Peer(network, processor, rows, MEASURED)
    peer.take_moments(ours)
    with tempfile.TemporaryDirectory(prefix="fovea-resume-cost-") as scratch:
        costs = compare(ours, peer, Path(scratch), _QUICK_ROUNDS if options.quick else _ROUNDS)
    packs = {"ours": ours.pack_seconds(20), "peer": peer.pack_seconds(20)}
    details = describe(costs, packs, ours, peer)
    spread = {side: [cost.seconds for cost in found] for side, found in costs.items()}
    ratio = statistics.median(theirs / own for own, theirs in zip(spread["ours"], spread["peer"], strict=True))
    measured = harness.result("resume_cost", "s", spread["ours"], spread["peer"], ratio=ratio, aim=AIM, details=details)
    harness.report(measured, options)


def prepare(count: int, config: ModelConfig) -> tuple[FlashModel, list[Row], FlashProcessor]:
    """A network with random weights, ``count`` chat rows of the mix, and the processor of both.

    Tokens are the mix's at a scale of 16 and those of the chat template. Where the mix says two tiles, which tiling
    never gives, there are three.
    """
    config = config.model_copy(update={"max_tiles": 12, "vision_checkpoint": None, "language_checkpoint": None})
    rng = np.random.default_rng(0)
    mix = packing_mix.rows(count, seed=2, scale=_MIX_SCALE)
    rows = [_row(f"row-{i}", row, config.vision.image_size, rng) for i, row in enumerate(mix)]
    texts = (message["content"] for row in rows for message in row["messages"])
    network, processor = build_model(config, train_tokenizer(texts, 512, ENGLISH_SYSTEM_PROMPT), seed=0)
    return network.train(), rows, processor


def _row(row_id: str, row: packing_mix.MixRow, side: int, rng: np.random.Generator) -> Row:
    """Random words, half of them the answer; noise as wide as the grid has columns, its thumbnail one tile more."""
    words = [_WORDS[i] for i in rng.integers(0, len(_WORDS), max(2, row.text_tokens))]
    asked, answer = " ".join(words[::2]), " ".join(words[1::2])
    media = []
    if row.tiles:
        columns = 1 if row.tiles == 1 else max(2, row.tiles - 1)
        noise = rng.integers(0, 256, (side, side * columns, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "PNG", compress_level=1)
        media = [image_media(stream.getvalue(), image_format="PNG", width=side * columns, height=side)]
    return {
        "id": row_id,
        "source": "resume_cost",
        "license": "CC0-1.0",
        "media": media,
        "messages": [
            {"role": "user", "content": "<image>\n" * len(media) + asked},
            {"role": "assistant", "content": answer},
        ],
        "task": "read",
        "answers": [answer],
        "scorer": scorer("exact"),
    }


def training(scale: Scale) -> TrainingConfig:
    """One pack in an optimiser step, in float32."""
    packing = PackingConfig(max_tokens=scale.max_tokens, max_units=scale.max_tiles, lookahead=scale.lookahead)
    return TrainingConfig(
        learning_rate=1e-4, steps=1000, batch_size=1, packing=packing, precision="float32", threads=1, seed=0
    )


class Ours:
    """Our engine, reader and packer after two optimiser steps."""

    def __init__(self, network: FlashModel, processor: FlashProcessor, rows: list[Row], scale: Scale) -> None:
        self.config = training(scale)
        self._rows, self._processor = rows, processor
        self.engine = PlainEngine(network, supervised_loss, self.config)
        reader, history = self.reader(), []
        with use_varlen_attention(*network.parts().language):
            for step in range(2):
                reading = reader.reading(step)
                (batch,) = reading.batches
                loss = self.engine.backward(batch, float(batch.weights.sum()), last=True)
                norm = self.engine.step(learning_rate(self.config, step))
                history.append({"step": step + 1, "loss": loss, "grad_norm": norm})
        self.state = TrainingState(step=2, history=history, packer=reading.packer)

    def reader(self) -> BatchReader:
        """A reader at the start of the stream, as a new process has it."""
        return BatchReader(self._rows, self._processor, self.config)

    def write(self, directory: Path, step: int) -> Path:
        """A checkpoint, as the loop writes it."""
        save_checkpoint(directory, self.engine, replace(self.state, step=step))
        return directory / f"checkpoint-{step:08d}"

    def load(self, directory: Path, reader: BatchReader) -> TrainingState:
        """Everything restored, as the loop does it."""
        state = load_checkpoint(directory, self.engine)
        assert state is not None, "it was written a moment ago"
        reader.resume(state.packer)
        return state

    def pack_seconds(self, packs: int) -> list[float]:
        """Seconds that the packer's state takes after each of so many packs."""
        packer = Packer(
            self.config.packing,
            lambda index: self._processor.measure(self._rows[index]),
            row_order(self._rows, self.config),
        )
        packer.load(self.state.packer)
        return _timed_states(packer.next, packer.state, packs)


class Peer:
    """The peer's model, optimiser, schedule and packed dataset on the same stream."""

    def __init__(self, network: FlashModel, processor: FlashProcessor, rows: list[Row], scale: Scale) -> None:
        self._config, self._scale = training(scale), scale
        self._rows, self._processor = rows, processor
        self._order = row_order(rows, self._config)
        self.model = copy.deepcopy(network)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self._config.learning_rate, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, _constant)
        self.history: list[dict[str, float]] = []
        self.dataset = self.new_dataset()
        for _ in range(scale.warm_packs):
            self.dataset.next()
        self.worker = self.dataset.state()

    def take_moments(self, ours: Ours) -> None:
        """Weights, moments and records of our engine."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for slot in ours.engine.tensors():
                parameters[slot.name].copy_(slot.weight)
                self.optimizer.state[parameters[slot.name]] = adam_state(parameters[slot.name], slot, ours.state.step)
        self.history = ours.state.history

    def new_dataset(self) -> PackedDataset:
        """A worker's dataset at the start of the stream, as a new process has it."""
        return PackedDataset(self._sample, self._scale.max_tokens, self._scale.max_tiles, self._scale.buffers)

    def _sample(self, position: int) -> Sample:
        return sample_of_row(self._processor, self._rows[self._order(position)])

    def write(self, directory: Path, step: int) -> Path:
        """A checkpoint with the state that came with the newest pack."""
        return official_checkpoint.write_checkpoint(
            directory, step, self.model, self.optimizer, self.scheduler, self.history, [self.worker]
        )

    def load(self, checkpoint: Path, dataset: PackedDataset) -> int:
        """Everything restored; ``dataset`` continues where the checkpoint stood."""
        return official_checkpoint.read_checkpoint(checkpoint, self.model, self.optimizer, self.scheduler, [dataset])

    def pack_seconds(self, packs: int) -> list[float]:
        """Seconds that the state takes with each of so many packs."""
        return _timed_states(self.dataset.next, self.dataset.state, packs)


def _constant(_step: int) -> float:
    return 1.0


def _timed_states(advance: Callable[[], object], state: Callable[[], object], packs: int) -> list[float]:
    seconds = []
    for _ in range(packs):
        advance()
        started = time.perf_counter()
        state()
        seconds.append(time.perf_counter() - started)
    return seconds


def compare(ours: Ours, peer: Peer, scratch: Path, rounds: int) -> dict[str, list[Cost]]:
    """Write, sync and load on both sides, taking turns; one round before them is not counted."""
    costs: dict[str, list[Cost]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        step = ours.state.step + number
        for side in sorted(costs, reverse=bool(number % 2)):
            directory = scratch / side
            if side == "ours":
                reader = ours.reader()
                cost = _cost(lambda: ours.write(directory, step), lambda _: ours.load(directory, reader))  # noqa: B023
            else:
                dataset = peer.new_dataset()
                cost = _cost(lambda: peer.write(directory, step), lambda at: peer.load(at, dataset))  # noqa: B023
            costs[side].append(cost)
            print(
                f"round {number} {side}: write {cost.write:.3f} s, load {cost.load:.3f} s, sync {cost.sync:.3f} s, "
                f"{cost.size / 1e6:.1f} MB",
                flush=True,
            )
    return {side: found[1:] for side, found in costs.items()}


def _cost(write: Callable[[], Path], load: Callable[[Path], object]) -> Cost:
    times = [time.perf_counter()]
    checkpoint = write()
    times.append(time.perf_counter())
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    times.append(time.perf_counter())
    load(checkpoint)
    times.append(time.perf_counter())
    written, synced, loaded = (after - before for before, after in itertools.pairwise(times))
    return Cost(written, synced, loaded, sum(path.stat().st_size for path in files))


def describe(costs: dict[str, list[Cost]], packs: dict[str, list[float]], ours: Ours, peer: Peer) -> dict[str, Any]:
    """Everything but the headline, printed as well."""
    held = peer.worker["buffer_list"]
    sizes = {"ours": len(json.dumps(ours.state.packer)), "peer": buffer_bytes(held)}
    details: dict[str, Any] = {"mix": packing_mix.NAME, "scale": asdict(MEASURED), "synced_by_either": False}
    for side, found in costs.items():
        parts = {name: [round(getattr(cost, name), 5) for cost in found] for name in ("write", "load", "sync")}
        middle = {f"{name}_seconds": round(statistics.median(values), 5) for name, values in parts.items()}
        details[side] = middle | {
            "checkpoint_bytes": found[-1].size,
            "packer_bytes": sizes[side],
            "packer_seconds_per_pack": round(statistics.median(packs[side]), 7),
            "packer_seconds_per_pack_range": [round(f(packs[side]), 7) for f in (min, max)],
            "rounds": parts,
        }
        print(
            f"{side:5} write {middle['write_seconds']:.3f} s, load {middle['load_seconds']:.3f} s, checkpoint "
            f"{found[-1].size / 1e6:.2f} MB, of it packer {sizes[side] / 1e6:.4f} MB; state of the packer for every "
            f"pack {details[side]['packer_seconds_per_pack'] * 1e6:.1f} us"
        )
    tiles = sum(len(buffer["pixel_values"]) for buffer in held)
    details["peer"] |= {"buffers": len(held), "tiles": tiles, "workers": 1}
    details["computed"] = published(details["peer"]["packer_bytes"] / details["peer"]["packer_seconds_per_pack"])
    return details


def published(bytes_per_second: float, count: int = 20_000) -> dict[str, float]:
    """Computed, not measured: the packers' parts at the published budgets and tiles, for one dataloader worker.

    Both packers run over sizes of the mix; bytes are those that tensors of these sizes have.

    Args:
        bytes_per_second: of the peer's deep copy, as measured.
        count: rows of the stream.
    """
    sizes = [row.size for row in packing_mix.rows(count, seed=2)]
    tile = 3 * PUBLISHED_SIDE**2 * 4
    token = 4 * 8  # input_ids, labels, data_index, position_ids
    packs: list[OpenPack] = []
    held = [
        sum(pack.units * tile + pack.tokens * token for pack in packs)
        for _ in first_fit(sizes, packing_mix.MAX_TOKENS, packing_mix.MAX_TILES, open_packs=packs)
    ]
    steady = statistics.mean(held[len(held) // 2 :])
    config = PackingConfig(
        max_tokens=packing_mix.MAX_TOKENS, max_units=packing_mix.MAX_TILES, lookahead=packing_mix.LOOKAHEAD
    )
    packer = Packer(config, sizes.__getitem__, lambda position: position)
    for _ in range(len(held) // 2):
        packer.next()
    found = {
        "peer_most_bytes": MAX_BUFFER_SIZE * (packing_mix.MAX_TILES * tile + packing_mix.MAX_TOKENS * token),
        "peer_mean_bytes_on_the_mix": round(steady),
        "peer_copy_seconds_per_pack_at_the_measured_rate": round(steady / bytes_per_second, 4),
        "our_bytes": len(json.dumps(packer.state())),
        "network_and_moments_bytes_8b": round(PARAMETERS_8B * _STATE_BYTES),
        "workers_whose_buffers_equal_the_8b_network": round(PARAMETERS_8B * _STATE_BYTES / steady, 1),
    }
    print("computed, not measured, at 20 buffers of 96 tiles of 448 pixels, per dataloader worker:")
    for name, value in found.items():
        print(f"  {name:50} {value:,}")
    return found


if __name__ == "__main__":
    main()
