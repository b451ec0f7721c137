"""Less memory or less time for the same numbers: activation checkpointing, and compiled layers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import config as inductor
from torch._inductor.exc import InductorError
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from model.data.errors import InputError
from model.families.interface import Parts

Choice = Literal["none", "language", "vision", "all"]


def checkpoint_activations(parts: Parts, choice: Choice) -> None:
    """Keep only the inputs of the layers of the chosen parts; their activations are computed again when needed.

    Random states are restored for the second computation, so dropped paths are the same. Acts in training mode only.
    The layers' own switch is used rather than ``gradient_checkpointing_enable`` of a whole model: a part may be less
    than a model (the Qwen-VLs' towers hold their projector), and that call lets gradients into frozen embeddings.

    Raises:
        ValueError: a chosen part has no layer that can be computed again.
    """
    for name, modules in (("language", parts.language), ("vision", parts.vision)):
        chosen = choice in (name, "all")
        layers = _layers(modules)
        if chosen and not layers:
            raise ValueError(f"the {name} part has no layers to compute again")
        for layer in layers:
            layer.gradient_checkpointing = chosen
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


@contextmanager
def compiled_layers(parts: Parts) -> Iterator[None]:
    """Compile each layer of the language model and the vision tower; then run them as before.

    Equal layers share their code. Random numbers are those of torch, so dropped paths are the same compiled or not.

    Raises:
        InputError: nothing can be compiled on this machine; the line says why.
    """
    _require_compiler()
    layers = _layers(parts.vision) + _layers(parts.language)
    for layer in layers:
        # Lengths differ from pack to pack: compiled once for any of them.
        layer.compile(dynamic=True)
    try:
        # Layers differ in the hooks that drop their paths: unless hooks are looked at, one's code would serve all.
        with dynamo.patch(skip_nnmodule_hook_guards=False), inductor.patch(fallback_random=True):
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _require_compiler() -> None:
    """Compile something small: a compiler, or the headers that it needs, may be missing."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except (TorchDynamoException, InductorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"training.compile: torch.compile does not work on this machine: {reason}") from error


def _layers(modules: Sequence[nn.Module]) -> list[GradientCheckpointingLayer]:
    """The repeated layers of a part."""
    return [m for module in modules for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
