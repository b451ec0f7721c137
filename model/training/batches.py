"""Samples to batches: padded rows or packs, with targets and weights."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.families.interface import Inputs, Sample
from model.objectives.next_token import Averaging, token_weight

Media = dict[str, np.ndarray]


@dataclass
class Batch:
    """A micro-batch; M positions carry loss.

    Attributes:
        inputs: what the network is given; ``inputs.keep`` [M] is one position before each target.
        targets, weights: [M].
        row_ids: for messages.
        tokens: real tokens, padding not counted.
        units: visual units, the blank one not counted.
        loss_calls: how often the head has to run when every rank must run it equally often; None leaves it to M.
    """

    inputs: Inputs
    targets: Tensor
    weights: Tensor
    row_ids: list[str]
    tokens: int
    units: int
    loss_calls: int | None = None

    @property
    def positions(self) -> int:
        """Tokens with padding."""
        return self.inputs.ids.numel()

    def to(self, device: torch.device) -> "Batch":
        """The batch on ``device``."""
        if device.type == "cpu":
            return self
        # Every field of this batch, and of the kinds of batches that stages derive from it.
        return replace(self, **{part.name: _moved(getattr(self, part.name), device) for part in fields(self)})


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors on ``device``, alone, in mappings and in the fields of ``Inputs``; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, Inputs):
        return replace(value, **{part.name: _moved(getattr(value, part.name), device) for part in fields(value)})
    return value


def pad(samples: Sequence[Sample], averaging: Averaging, pad_id: int, blank: Media | None = None) -> Batch:
    """Samples side by side, padded on the right.

    Args:
        samples: at least one.
        averaging: how a sample's loss tokens are weighted.
        pad_id: fills the padding.
        blank: a visual item to add when the samples have none.
    """
    width = max(len(sample.input_ids) for sample in samples)
    ids = torch.full((len(samples), width), pad_id)
    mask = torch.zeros_like(ids)
    target = torch.zeros((len(samples), width), dtype=torch.bool)
    weight = torch.zeros((len(samples), width))
    for i, sample in enumerate(samples):
        length = len(sample.input_ids)
        ids[i, :length] = torch.tensor(sample.input_ids)
        mask[i, :length] = 1
        target[i, :length], weight[i, :length] = _targets(sample, averaging)
    positions = None
    if samples[0].positions is not None:
        positions = torch.zeros((3, len(samples), width), dtype=torch.long)
        for i, sample in enumerate(samples):
            positions[:, i, : len(sample.input_ids)] = torch.from_numpy(sample.positions)
    return _batch(samples, ids, mask, positions, None, target, weight, blank)


def pack(samples: Sequence[Sample], averaging: Averaging, blank: Media | None = None) -> Batch:
    """Samples end to end, in order; positions start from zero in each.

    Args:
        samples: at least one.
        averaging: how a sample's loss tokens are weighted.
        blank: a visual item to add when the samples have none.
    """
    ids = torch.tensor([[token for sample in samples for token in sample.input_ids]])
    borders = np.cumsum([0, *(len(sample.input_ids) for sample in samples)])
    marked = [_targets(sample, averaging) for sample in samples]
    target = torch.cat([t for t, _ in marked])[None]
    weight = torch.cat([w for _, w in marked])[None]
    if samples[0].positions is None:
        positions = torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])[None]
    else:
        positions = torch.from_numpy(np.concatenate([sample.positions for sample in samples], axis=1))[:, None]
    cu_seqlens = torch.from_numpy(borders.astype(np.int32))
    return _batch(samples, ids, None, positions, cu_seqlens, target, weight, blank)


def _targets(sample: Sample, averaging: Averaging) -> tuple[Tensor, Tensor]:
    """Which tokens are targets [T], and the weight of each."""
    target = torch.tensor(sample.trained)
    # The first token has no position before it; the system turn stands there, so it is never a target.
    target[0] = False
    return target, torch.full(target.shape, token_weight(int(target.sum()), averaging))


def _batch(
    samples: Sequence[Sample],
    ids: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    cu_seqlens: Tensor | None,
    target: Tensor,
    weight: Tensor,
    blank: Media | None,
) -> Batch:
    seen = [sample.media for sample in samples if sample.units]
    add_blank = blank is not None and not seen
    items = [blank] if add_blank else seen
    media = (
        {name: torch.from_numpy(np.concatenate([item[name] for item in items])) for name in items[0]} if items else {}
    )
    flat = target.flatten()
    # One position before a target; a target is never the first token, so this never reaches into a neighbour.
    keep = flat.nonzero()[:, 0] - 1
    inputs = Inputs(ids, mask, positions, cu_seqlens, media, add_blank, keep)
    return Batch(
        inputs,
        ids.flatten()[flat],
        weight.flatten()[flat],
        [sample.row_id for sample in samples],
        sum(len(sample.input_ids) for sample in samples),
        sum(sample.units for sample in samples),
    )
