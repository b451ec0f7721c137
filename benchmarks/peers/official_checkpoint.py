"""What InternVL's public trainer keeps to resume, re-implemented from a description of its behaviour; not its code.

Described: ``internvl_chat_gpt_oss``, dataset_packed.py, run by a ``transformers.Trainer``. Every dataloader worker
packs by first-fit (``first_fit.py``) over samples that are tensors already. A buffer is the concatenation of its
samples, pixel values included. With every pack that a worker yields comes its state, which holds a deep copy of all
open buffers; a checkpoint stores the newest state of every worker. Beside it lie the files of the Trainer: the model as
safetensors; optimiser, schedule and random states by ``torch.save``; its progress as JSON. Nothing is synced to the
disk, and older checkpoints are removed (``save_total_limit`` 1).

The description leaves open the type of the pixels: float32 here, which torchvision's transforms give. A text-only
sample has no pixels here.
"""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from benchmarks.peers.first_fit import MAX_BUFFER_SIZE, OpenPack, first_fit
from model.families.interface import Sample, Size
from model.flash.processor import IMAGENET_MEAN, IMAGENET_STD

_MODEL, _PROGRESS = "model.safetensors", "trainer_state.json"
_OPTIMIZER, _SCHEDULER, _RANDOM, _DATA = "optimizer.pt", "scheduler.pt", "rng_state.pth", "data_state.pt"
IGNORED = -100
Buffer = dict[str, Tensor]


def buffer_of_sample(sample: Sample, position: int) -> Buffer:
    """A sample of T tokens and N tiles of side S as the tensors that are packed.

    Returns:
        input_ids, labels, data_index and position_ids [T] int64; pixel_values [N, 3, S, S] float32, normalised;
        image_flags [N] int64; positions [1], where in the stream it stood.
    """
    ids = torch.tensor(sample.input_ids)
    labels = torch.where(torch.tensor(sample.trained), ids, IGNORED)
    tiles = torch.from_numpy(sample.media["tiles"]).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return {
        "input_ids": ids,
        "labels": labels,
        "data_index": torch.zeros_like(ids),
        "position_ids": torch.arange(len(ids)),
        "pixel_values": ((tiles - mean) / std).contiguous(),
        "image_flags": torch.ones(len(tiles), dtype=torch.long),
        "positions": torch.tensor([position]),
    }


def buffer_bytes(buffers: list[Buffer]) -> int:
    """Bytes of all tensors in buffers."""
    return sum(tensor.nbytes for buffer in buffers for tensor in buffer.values())


def concatenate(buffers: list[Buffer]) -> Buffer:
    """Buffers end to end; ``data_index`` counts the samples on."""
    joined = {name: torch.cat([buffer[name] for buffer in buffers]) for name in buffers[0]}
    before = np.cumsum([0, *(len(buffer["positions"]) for buffer in buffers[:-1])]).tolist()
    indices = [buffer["data_index"] + count for buffer, count in zip(buffers, before, strict=True)]
    return joined | {"data_index": torch.cat(indices)}


class PackedDataset:
    """The packing of one dataloader worker.

    Args:
        sample: the sample at a position of the stream (0, 1, 2, ...).
        max_tokens, max_tiles: budgets of a pack.
        max_buffer_size: packs that may be open at a time.
    """

    def __init__(
        self,
        sample: Callable[[int], Sample],
        max_tokens: int,
        max_tiles: int,
        max_buffer_size: int = MAX_BUFFER_SIZE,
    ) -> None:
        self._sample, self._budgets = sample, (max_tokens, max_tiles, max_buffer_size)
        self._start(0, [])

    def _start(self, drawn: int, buffers: list[Buffer]) -> None:
        self._drawn = self._first = drawn
        self._loose: dict[int, Buffer] = {}  # drawn since the last pack, by position
        self._buffers = {int(buffer["positions"][0]): buffer for buffer in buffers}  # by the first position
        # first_fit numbers the samples that it is given from 0; those of the buffers came before them.
        self._open = [
            OpenPack((buffer["positions"] - drawn).tolist(), len(buffer["input_ids"]), len(buffer["pixel_values"]))
            for buffer in buffers
        ]
        self._packs = first_fit(self._sizes(), *self._budgets, self._open)

    def _sizes(self) -> Iterator[Size]:
        while True:
            sample = self._sample(self._drawn)
            self._loose[self._drawn] = buffer_of_sample(sample, self._drawn)
            self._drawn += 1
            yield sample.size

    def next(self) -> Buffer:
        """The next pack."""
        numbers = next(self._packs)
        for pack in self._open:
            self._buffers[pack.samples[0] + self._first] = self._gathered(pack.samples)
        return self._gathered(numbers)

    def _gathered(self, numbers: list[int]) -> Buffer:
        """The buffer of a pack, taken out, with the samples that joined it since the last pack was yielded."""
        positions = [self._first + number for number in numbers]
        held = self._buffers.pop(positions[0], None)
        joined = [self._loose.pop(position) for position in positions if position in self._loose]
        buffers = joined if held is None else [held, *joined]
        return buffers[0] if len(buffers) == 1 else concatenate(buffers)

    def state(self) -> dict[str, Any]:
        """What a worker gives out with every pack: a deep copy of all open buffers, most tiles first."""
        buffers = [self._buffers[pack.samples[0] + self._first] for pack in self._open]
        return {"drawn": self._drawn, "buffer_list": copy.deepcopy(buffers)}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self._start(state["drawn"], state["buffer_list"])


def write_checkpoint(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    history: list[dict[str, float]],
    workers: list[dict[str, Any]],
) -> Path:
    """Write ``checkpoint-<step>`` and remove the others; ``workers`` holds the newest state of every worker."""
    target = directory / f"checkpoint-{step}"
    target.mkdir(parents=True, exist_ok=True)
    save_model(model, str(target / _MODEL))  # tied weights once, as the Trainer writes them
    torch.save(optimizer.state_dict(), target / _OPTIMIZER)
    torch.save(scheduler.state_dict(), target / _SCHEDULER)
    torch.save(_random_states(), target / _RANDOM)
    torch.save(dict(enumerate(workers)), target / _DATA)
    (target / _PROGRESS).write_text(json.dumps({"global_step": step, "log_history": history}))
    for other in directory.glob("checkpoint-*"):
        if other != target:
            shutil.rmtree(other)
    return target


def read_checkpoint(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    workers: list[PackedDataset],
) -> int:
    """Restore everything in place, random states included; returns the step."""
    load_model(model, str(checkpoint / _MODEL))
    optimizer.load_state_dict(torch.load(checkpoint / _OPTIMIZER, weights_only=True))
    scheduler.load_state_dict(torch.load(checkpoint / _SCHEDULER, weights_only=True))
    _set_random_states(torch.load(checkpoint / _RANDOM, weights_only=True))
    states = torch.load(checkpoint / _DATA, weights_only=True)
    for number, worker in enumerate(workers):
        worker.load(states[number])
    return json.loads((checkpoint / _PROGRESS).read_text())["global_step"]


def _random_states() -> dict[str, Any]:
    """States of Python, numpy and torch; numpy's array as a tensor, so that it loads as weights do."""
    name, keys, *rest = np.random.get_state()
    numpy_state = [name, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"python": random.getstate(), "numpy": numpy_state, "cpu": torch.random.get_rng_state()}


def _set_random_states(states: dict[str, Any]) -> None:
    name, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(states["cpu"])
