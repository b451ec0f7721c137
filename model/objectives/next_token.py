"""Next-token loss on response tokens with square averaging.

Source: InternVL3.5 (arXiv 2508.18265), section 2.2: L' = sum_i w_i L_i / sum_j w_j with w_i = 1 / N**0.5, where N is
the number of loss tokens of the sample that token i belongs to. The sum over j runs over the whole optimiser step.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.objectives.chunking import by_chunks

Averaging = Literal["token", "sample", "square"]
_EXPONENT = {"token": 0.0, "sample": 1.0, "square": 0.5}


def token_weight(loss_tokens: int, averaging: Averaging) -> float:
    """Weight of one loss token in a sample with ``loss_tokens`` of them (0 for a sample without any)."""
    return loss_tokens ** -_EXPONENT[averaging] if loss_tokens else 0.0


def sample_weight(loss_tokens: int, averaging: Averaging) -> float:
    """Sum of the token weights of a sample: its share in the denominator."""
    return loss_tokens * token_weight(loss_tokens, averaging)


def next_token_loss(logits_MV: Tensor, targets_M: Tensor, weights_M: Tensor, denominator: float) -> Tensor:
    """Weighted cross-entropy over M loss tokens, in float32.

    Args:
        logits_MV: logits at the positions before the targets.
        targets_M: the token ids to predict; every id counts, 0 too.
        weights_M: weight of each token.
        denominator: sum of the weights of the whole optimiser step, over micro-batches and ranks, so that the sum of
            the micro-batch losses is the loss of the step.
    """
    losses = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
    return (losses * weights_M).sum() / denominator


def chunked_next_token_loss(
    states_MD: Tensor,
    head: nn.Module,
    targets_M: Tensor,
    weights_M: Tensor,
    denominator: float,
    chunk: int,
    calls: int | None = None,
) -> Tensor:
    """``next_token_loss`` of ``head(states)``, with the logits of at most ``chunk`` positions in memory at a time.

    The positions are cut into even pieces; the logits of a piece are computed again in the backward pass. ``head`` is
    called as a module, so that hooks (gathering of divided weights) and adapters work. A single piece is kept instead.

    Args:
        states_MD: final hidden states at the positions before the targets; M may be 0, then the loss is a zero that
            is connected to states and head.
        head: [m, D] to [m, V].
        targets_M, weights_M, denominator: as in ``next_token_loss``.
        chunk: most positions whose logits exist at the same time.
        calls: how often ``head`` is called, as in ``by_chunks``; as often as M needs when None.

    Raises:
        ValueError: ``calls`` pieces of ``chunk`` positions do not hold M.
    """

    def piece_loss(states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return next_token_loss(head(states), targets, weights, denominator)

    losses = by_chunks(piece_loss, (states_MD, targets_M, weights_M), chunk, calls)
    return torch.stack(losses).sum()
