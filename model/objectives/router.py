"""Labels for the Visual Resolution Router, and its loss.

Source: InternVL3.5 (arXiv 2508.18265), section 2.3. With the consistency losses L of an answer whose image is shown at
1/16 and at 1/4 (model/objectives/vico.py),

    r   = L(1/16) / L(1/4)
    y   = 0 (compress) if r < tau, else 1 (keep)
    tau = the k-th percentile of the latest r

and the router is trained by cross-entropy. Column 0 of its output is P(compress), as in the released checkpoints. Here
everything is in log r, and a floor keeps both losses away from zero: docs/flash.md says why.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COMPRESS, KEEP = 0, 1
"""Labels, and columns of the router's output."""


def log_ratios(compressed_S: Tensor, full_S: Tensor, floor: float) -> Tensor:
    """log r = log((L(1/16) + floor) / (L(1/4) + floor)), in float64 without gradient.

    L(1/4) is a divergence, so it is 0 where training moved nothing; what rounding leaves below 0 counts as 0. The same
    floor stands above, so that r is 1 where compression changes nothing.

    Args:
        compressed_S, full_S: consistency losses of the same answers in nats per token.
        floor: above 0, in the same unit.
    """
    compressed, full = (loss.detach().double().clamp(min=0) + floor for loss in (compressed_S, full_S))
    return compressed.log() - full.log()


class RatioWindow:
    """The latest ratios, and their percentile.

    Args:
        size: ratios that are kept.
        percentile: k, between 0 and 100.
    """

    def __init__(self, size: int, percentile: float) -> None:
        self.percentile = percentile
        self._latest: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._latest)

    @property
    def threshold(self) -> float | None:
        """tau of log r, interpolated linearly as numpy does; None before the first ratio."""
        return float(np.percentile(self._latest, self.percentile)) if self._latest else None

    def add(self, ratios: Sequence[float]) -> None:
        """Newer ratios, the oldest of them first."""
        self._latest.extend(ratios)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: JSON keeps it to the last bit."""
        return {"latest": list(self._latest)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self._latest.clear()
        self._latest.extend(float(ratio) for ratio in state["latest"])


def labels(log_ratios_N: Tensor, threshold: float) -> Tensor:
    """y [N]: ``COMPRESS`` where r lies under the threshold, else ``KEEP``."""
    return torch.where(log_ratios_N < threshold, COMPRESS, KEEP)


def router_loss(logits_N2: Tensor, labels_N: Tensor, denominator: float) -> Tensor:
    """The share of N labelled tiles in the loss of an optimiser step: cross-entropy in float32.

    Args:
        logits_N2: the router's output; column 0 is compress.
        labels_N: of ``labels``.
        denominator: labelled tiles of the whole optimiser step, over micro-batches and ranks. (Where an engine averages
            over ranks: divided by their number.)
    """
    return F.cross_entropy(logits_N2.float(), labels_N, reduction="sum") / denominator
