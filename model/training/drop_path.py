"""Stochastic depth for transformers' InternViT, whose layers leave it out.

Source: the released InternVL3.5 training scripts (drop_path_rate 0.1 and 0.4, linear over depth).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from model.data.errors import InputError
from model.families.interface import Network
from model.flash.network import FlashModel


@contextmanager
def drop_path(network: Network, rate: float) -> Iterator[None]:
    """Drop each residual branch of layer i with probability ``rate * i / (layers - 1)``, per tile, in training mode.

    A branch is ``lambda * f(x)`` with an element-wise lambda, so dropping ``f(x)`` drops the branch.

    Raises:
        InputError: the network has another vision tower than InternViT.
    """
    if rate and not isinstance(network, FlashModel):
        raise InputError("training.drop_path_rate: only InternViT has stochastic depth; leave it at 0")
    layers = network.vision_tower.encoder.layer if rate else []
    hooks = []
    for index, layer in enumerate(layers):
        probability = rate * index / max(1, len(layers) - 1)
        if probability > 0:
            hooks += [branch.register_forward_hook(_drop(probability)) for branch in (layer.attention, layer.mlp)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _drop(probability: float) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def hook(module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        if not module.training:
            return output
        branch = output[0] if isinstance(output, tuple) else output
        keep = torch.rand((branch.shape[0], *[1] * (branch.dim() - 1)), device=branch.device) >= probability
        branch = branch * keep.to(branch.dtype) / (1 - probability)
        return (branch, *output[1:]) if isinstance(output, tuple) else branch

    return hook
