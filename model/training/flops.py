"""Floating-point operations that an optimiser step needs, for model FLOPs utilisation (MFU).

As in PaLM (arXiv 2204.02311, appendix B): a multiply-add counts 2; what activation checkpointing computes again does
not count. A weight that multiplies a position costs 2 forward, 2 for its own gradient if it trains, and 2 for the
gradient that passes through it if anything trains at or before it: 6 in full training, 4 in a frozen language model
behind a trained projector, 2 in a frozen vision tower. (The gradient into the pixels, which nobody computes, is
counted: below a thousandth of a real model.) Where lengths are not known the lower bound is taken:

- causal attention: 4 FLOPs per layer, head dimension and (query, key) pair forward, twice that backward, over the
  T (T + 1) / 2 pairs of samples that are all of mean length T (unequal ones have more); none for sliding windows;
- attention in the vision tower: over all pairs inside a tile for InternVL; none for the Qwen-VLs, whose windows vary.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.families.interface import Network

_BF16_PEAK = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
}
"""Dense bf16 tensor-core FLOP/s by a part of the device's name; NVIDIA's data sheets of A100, H100 and H200 (half of
the figures with sparsity)."""


@dataclass(frozen=True)
class StepCost:
    """FLOPs, forward and backward, of each unit of work.

    Attributes:
        per_token: weights of the language model, for each of its tokens; the head is not among them.
        per_target: the head, for each position that carries loss.
        per_pair: attention of the language model, for each causal (query, key) pair.
        per_unit: vision tower and projector, for each visual unit (tile, or merged patch).
    """

    per_token: float
    per_target: float
    per_pair: float
    per_unit: float

    def step(self, *, tokens: int, targets: int, units: int, rows: int) -> float:
        """FLOPs of a step over ``rows`` samples with ``tokens`` real tokens, ``targets`` of which carry loss."""
        pairs = tokens * (tokens / max(rows, 1) + 1) / 2
        return tokens * self.per_token + targets * self.per_target + pairs * self.per_pair + units * self.per_unit


def step_cost(network: Network) -> StepCost:
    """Cost of training ``network`` as its parameters are marked now. Call it before ZeRO divides them.

    ``network.config`` is transformers' configuration of the whole, with ``vision_config`` and ``text_config``.
    """
    parts, config = network.parts(), network.config
    text, head = config.text_config, network.head.weight
    trains = [any(p.requires_grad for p in parts.parameters(name)) for name in ("vision", "projector", "language")]
    flows = [any(trains[: index + 1]) for index in range(3)]  # a gradient passes through what trains and all after it
    vision, projector = (
        _weights(modules, flow, (), 1.0) for modules, flow in ((parts.vision, flows[0]), (parts.projector, flows[1]))
    )
    positions, projected = _positions(config)
    layers = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return StepCost(
        per_token=_weights(parts.language, flows[2], (head,), _share_of_experts(text)),
        per_target=head.numel() * _factor(head, flows[2]),
        per_pair=4 * width * layers.count("full_attention") * (3 if flows[2] else 1),
        per_unit=positions * vision + projected * projector + _tile_attention(config, positions, flows[0]),
    )


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU in FLOP/s; None for CPUs and GPUs whose data sheet is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _BF16_PEAK.items() if all(word in name for word in part.split())), None)


def _factor(parameter: nn.Parameter, flow: bool) -> int:
    return 2 + 2 * parameter.requires_grad + 2 * flow


def _weights(modules: Iterable[nn.Module], flow: bool, left_out: Iterable[nn.Parameter], experts: float) -> float:
    """FLOPs per position of all weights that multiply it; ``experts`` is the share of experts that a token visits.

    Embeddings are looked up; vectors, and tables with a leading 1 (class token, positions), are added.
    """
    skipped, total = {id(parameter) for parameter in left_out}, 0.0
    for module in modules:
        skipped |= {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        for name, parameter in module.named_parameters():
            if id(parameter) in skipped or parameter.ndim < 2 or parameter.shape[0] == 1:
                continue
            total += parameter.numel() * _factor(parameter, flow) * (experts if ".experts." in name else 1)
    return total


def _share_of_experts(text: Any) -> float:
    count = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    return text.num_experts_per_tok / count if count else 1.0


def _positions(config: Any) -> tuple[int, int]:
    """Positions that a visual unit has in the tower, and behind it in the projector."""
    merge = getattr(config.vision_config, "spatial_merge_size", None)
    if merge:
        return merge**2, 1
    patches = (_side(config.vision_config.image_size) // _side(config.vision_config.patch_size)) ** 2
    return patches + 1, round(patches * config.downsample_ratio**2)  # the class token stays in the tower


def _side(value: Any) -> int:
    return value if isinstance(value, int) else value[0]


def _tile_attention(config: Any, positions: int, flow: bool) -> float:
    vision = config.vision_config
    if getattr(vision, "spatial_merge_size", None):
        return 0.0
    return 4 * vision.num_hidden_layers * vision.hidden_size * positions**2 * (3 if flow else 1)
