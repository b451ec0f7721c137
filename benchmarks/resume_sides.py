"""What the benchmark ``resume_cost`` compares: its rows, and both sides in the midst of their training."""

import copy
import io
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import packing_mix
from benchmarks.peers import official_checkpoint
from benchmarks.peers.first_fit import OpenPack, first_fit
from benchmarks.peers.official_checkpoint import PackedDataset, buffer_of_sample, concatenate
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
from model.training.loop import learning_rate, supervised_loss
from model.training.packing import Packer
from model.training.reader import BatchReader, row_order, sample_of_row

_WORDS = ("red", "green", "blue", "one", "two", "three", "left", "right", "above", "below")
_MIX_SCALE = 16


@dataclass(frozen=True)
class Scale:
    """How large the packers are: rows of the dataset, budgets of a pack, waiting rows (ours), open buffers (peer)."""

    rows: int
    max_tokens: int
    max_tiles: int
    lookahead: int
    buffers: int
    warm_packs: int
    """Packs that the peer yields before anything is measured: its buffers lose tiles as rows of text fill more of
    them, by half in the first thousand packs."""


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
        self.dataset.load(self._state_after(scale.warm_packs))
        self.worker = self.dataset.state()

    def _state_after(self, packs: int) -> dict[str, Any]:
        """What the dataset's state is after so many packs; only what is still open then is decoded."""
        measured = [self._processor.measure(row) for row in self._rows]
        sizes = (measured[self._order(position)] for position in itertools.count())
        held: list[OpenPack] = []
        scale = self._scale
        yielded = first_fit(sizes, scale.max_tokens, scale.max_tiles, scale.buffers, held)
        given = [position for pack in itertools.islice(yielded, packs) for position in pack]
        buffers = [
            concatenate([buffer_of_sample(self._sample(position), position) for position in pack.samples])
            for pack in held
        ]
        return {"drawn": len(given) + sum(len(pack.samples) for pack in held), "buffer_list": buffers}

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
