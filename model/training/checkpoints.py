"""Checkpoints of a running stage: safetensors and JSON, complete or absent.

A checkpoint holds whole tensors by name, whatever engine and however many processes wrote it. Randomness and the order
of rows are functions of the seed and the step, so the step is their state; a packer's state is a few indices.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.data.errors import InputError
from model.training.engine import Engine, Slot

_PREFIX = "checkpoint-"
_STATE = "state.json"
_KINDS = ("weight", "exp_avg", "exp_avg_sq")
_PART_BYTES = 4 << 30
"""A file is closed when it holds this much: what rank 0 keeps in memory while it writes."""


@dataclass
class TrainingState:
    """What a resumed run needs beside weights and moments.

    Attributes:
        step: optimiser steps done.
        tokens: tokens seen.
        history: the logged records so far.
        packer: where the packer stands; None when rows are not packed.
        memory: what the stage's loss keeps from step to step; None when it keeps nothing.
    """

    step: int = 0
    tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    packer: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None


def save_checkpoint(directory: Path, engine: Engine, state: TrainingState) -> None:
    """Write ``checkpoint-<step>`` under a temporary name, rename it, drop older ones. All ranks have to call it."""
    target = directory / f"{_PREFIX}{state.step:08d}"
    temporary = directory / f".{target.name}.tmp"
    writes = engine.rank == 0
    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    for number, part in enumerate(_parts(engine)):
        if writes:
            save_file(part, temporary / f"part-{number:05d}.safetensors")
    if not writes:
        return
    (temporary / _STATE).write_text(json.dumps(asdict(state)))
    # Older ones go when this one is on the disk: a loss of power must not leave an empty one alone.
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    _sync(directory)
    for older in _complete(directory)[:-1]:
        shutil.rmtree(older)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parts(engine: Engine) -> Iterator[dict[str, Any]]:
    part: dict[str, Any] = {}
    size = 0
    for slot in engine.tensors():
        for kind in _KINDS:
            tensor = getattr(slot, kind)
            if tensor is not None:
                # Ranks above 0 only take part in the gathering.
                part[f"{slot.name}|{kind}"] = tensor.cpu().contiguous() if engine.rank == 0 else tensor[:0]
                size += tensor.numel() * tensor.element_size()
        if size >= _PART_BYTES:
            yield part
            part, size = {}, 0
    yield part


def load_checkpoint(directory: Path, engine: Engine) -> TrainingState | None:
    """Restore the newest checkpoint in place; None when there is none.

    Raises:
        InputError: it does not belong to this model, or is damaged.
    """
    found = _complete(directory)
    if not found:
        return None
    newest = found[-1]
    try:
        state = TrainingState(**json.loads((newest / _STATE).read_text()))
        shapes = {name: shape for part in _files(newest) for name, shape in _shapes(part).items()}
        expected = {slot.name: tuple(slot.weight.shape) for slot in engine.tensors()}
        if expected != shapes:
            raise InputError(f"{newest}: belongs to another model; remove {directory} to start over")
        engine.load((slot for part in _files(newest) for slot in _slots(part)), state.step)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{newest}: damaged ({error}); remove it to go on from an older one or anew") from error
    return state


def _files(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("part-*.safetensors"))


def _shapes(part: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(part, framework="pt") as stream:
        names = [key.removesuffix("|weight") for key in stream.keys() if key.endswith("|weight")]  # noqa: SIM118
        return {name: tuple(stream.get_slice(f"{name}|weight").get_shape()) for name in names}


def _slots(part: Path) -> Iterator[Slot]:
    """The parameters of one file, read one after the other."""
    with safe_open(part, framework="pt") as stream:
        keys = set(stream.keys())
        for name in sorted(key.removesuffix("|weight") for key in keys if key.endswith("|weight")):
            present = (f"{name}|{kind}" for kind in _KINDS)
            yield Slot(name, *(stream.get_tensor(key) if key in keys else None for key in present))


def _complete(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob(f"{_PREFIX}*") if p.is_dir())
