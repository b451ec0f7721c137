"""Less memory or less time for the same numbers: activation checkpointing, and compiled layers."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.data.errors import InputError
from model.families.interface import Parts

Choice = Literal["none", "language", "vision", "all"]


def checkpoint_activations(parts: Parts, choice: Choice) -> None:
    """Keep only the inputs of the layers of the chosen parts; their activations are computed again when needed.

    Random states are restored for the second computation, so dropped paths are the same. Acts in training mode only.

    Raises:
        ValueError: a chosen part has no layer that can be computed again.
    """
    for name in ("language", "vision"):
        layers = _layers(getattr(parts, name))
        if choice in (name, "all") and not layers:
            raise ValueError(f"the {name} part has no layers to checkpoint")
        for model in _models(getattr(parts, name)):
            if choice not in (name, "all"):
                model.gradient_checkpointing_disable()
                continue
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            # transformers lets gradients into frozen embeddings, which only the re-entrant kind needs.
            model.disable_input_require_grads()


def compile_layers(parts: Parts) -> None:
    """Compile each layer of the language model and the vision tower in place; equal layers share their code.

    Raises:
        InputError: nothing can be compiled on this machine; the line says why.
    """
    _require_compiler()
    for layer in (*_layers(parts.vision), *_layers(parts.language)):
        # Lengths differ from pack to pack: compiled once for any of them.
        layer.compile(dynamic=True)


def _require_compiler() -> None:
    """Compile something small: a compiler, or the headers that it needs, may be missing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except (TorchDynamoException, InductorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"training.compile: torch.compile does not work on this machine: {reason}") from error


def _models(modules: Iterable[nn.Module]) -> list[PreTrainedModel]:
    """The outermost transformers models among modules and inside their wrappers."""
    found = []
    for module in modules:
        if isinstance(module, PreTrainedModel):
            found.append(module)
        else:
            found += _models(module.children())
    return found


def _layers(modules: Iterable[nn.Module]) -> list[GradientCheckpointingLayer]:
    """The repeated layers of a part."""
    return [m for module in modules for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
