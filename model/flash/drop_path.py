"""Stochastic depth for transformers' InternViT, whose layers leave it out.

Source: InternVL3.5 released training configuration (drop_path_rate 0.1 and 0.4, linear over depth).
"""

import torch
from torch import Tensor, nn


def add_drop_path(vision_tower: nn.Module, rate: float) -> None:
    """Drop each residual branch of layer i with probability ``rate * i / (layers - 1)``, per tile, in training.

    A branch is ``lambda * f(x)`` with an element-wise lambda, so dropping ``f(x)`` drops the branch.
    """
    if rate <= 0:
        return
    layers = vision_tower.encoder.layer
    for index, layer in enumerate(layers):
        probability = rate * index / max(1, len(layers) - 1)
        layer.attention.register_forward_hook(_hook(probability))
        layer.mlp.register_forward_hook(_hook(probability))


def _hook(probability: float):  # noqa: ANN202 - a torch hook
    def drop(module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if not module.training or probability == 0:
            return output
        branch = output[0] if isinstance(output, tuple) else output
        shape = (branch.shape[0], *[1] * (branch.dim() - 1))
        keep = torch.rand(shape, device=branch.device) >= probability
        branch = branch * keep.to(branch.dtype) / (1 - probability)
        return (branch, *output[1:]) if isinstance(output, tuple) else branch

    return drop
