"""Checkpoints of a running stage: safetensors and JSON, complete or absent."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from model.data.errors import InputError

_PREFIX = "checkpoint-"


@dataclass
class TrainingState:
    """What a resumed run needs beside weights and optimiser.

    Attributes:
        step: optimiser steps done.
        tokens: tokens seen.
        history: the logged records so far.
    """

    step: int = 0
    tokens: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Write ``checkpoint-<step>`` under a temporary name, rename it, then drop older ones."""
    target = directory / f"{_PREFIX}{state.step:08d}"
    temporary = directory / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    # Tied weights stand once: named_parameters leaves duplicates out.
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, temporary / "model.safetensors")
    moments = {
        f"{index}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }
    save_file(moments, temporary / "optimizer.safetensors")
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    save_file(random_state, temporary / "random.safetensors")
    record = {"step": state.step, "tokens": state.tokens, "history": state.history}
    (temporary / "state.json").write_text(json.dumps(record))
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    for older in _complete(directory)[:-1]:
        shutil.rmtree(older)


def load_checkpoint(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState | None:
    """Restore the newest checkpoint in place; None when there is none.

    Raises:
        InputError: it does not belong to this model.
    """
    found = _complete(directory)
    if not found:
        return None
    newest = found[-1]
    tensors = load_file(newest / "model.safetensors")
    parameters = dict(model.named_parameters())
    if set(tensors) != set(parameters):
        raise InputError(f"{newest}: belongs to another model; remove {directory} to start over")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    optimizer_state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(newest / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        optimizer_state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
    random_state = load_file(newest / "random.safetensors")
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])
    return TrainingState(**json.loads((newest / "state.json").read_text()))


def _complete(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob(f"{_PREFIX}*") if p.is_dir())
