"""Visual consistency: a network that sees fewer visual tokens answers as its reference does with all of them.

Source: InternVL3.5 (arXiv 2508.18265), section 2.3. With an image I shown at the full resolution to a frozen reference,
and at a compression xi to the policy,

    L = E_xi [ 1 / N  sum_i  KL(pi_reference(. | y_<i, I) || pi(. | y_<i, I_xi)) ],   xi from {1/4, 1/16}

over the N response tokens. The two sequences differ in length, because a compressed tile has fewer placeholders: the
i-th response token of one is held against the i-th of the other. docs/flash.md says what the paper leaves open.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.objectives.chunking import by_chunks


class ConsistencyScores(NamedTuple):
    """Of M response tokens: divergences [M] from the reference in nats, and negative log-likelihoods [M]."""

    divergences: Tensor
    likelihoods: Tensor


def divergences(reference_MV: Tensor, policy_MV: Tensor) -> Tensor:
    """KL(reference || policy) in nats [M], in float32, from the logits of both; the gradient goes to the policy alone.

    Args:
        reference_MV, policy_MV: finite logits of the same M positions.
    """
    reference = reference_MV.detach().float().log_softmax(-1)
    return F.kl_div(policy_MV.float().log_softmax(-1), reference, reduction="none", log_target=True).sum(-1)


def consistency_scores(
    states_MD: Tensor,
    head: nn.Module,
    reference_ME: Tensor,
    reference_head: nn.Module,
    targets_M: Tensor,
    chunk: int,
    calls: int | None = None,
) -> ConsistencyScores:
    """Divergence and likelihood of every response token, with the logits of ``chunk`` positions in memory at a time.

    Args:
        states_MD: the policy's final hidden states before each response token.
        head: the policy's, [m, D] to [m, V].
        reference_ME: the reference's, before the same tokens in the same order; no gradient reaches them.
        reference_head: [m, E] to [m, V]; runs without a gradient, in the forward and again in the backward pass.
        targets_M: the response tokens.
        chunk: most positions whose logits exist at the same time, twice: the reference's and the policy's.
        calls: how often the heads are called, as in ``by_chunks``; as often as M needs when None.

    Raises:
        ValueError: states and tokens differ in number, or ``calls`` pieces of ``chunk`` positions do not hold M.
    """
    if not len(states_MD) == len(reference_ME) == len(targets_M):
        numbers = f"{len(states_MD)} states of the policy, {len(reference_ME)} of the reference"
        raise ValueError(f"{numbers}, {len(targets_M)} response tokens")

    def piece(states: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            fixed = reference_head(reference)
        logits = head(states).float()
        return divergences(fixed, logits), F.cross_entropy(logits, targets, reduction="none")

    pieces = by_chunks(piece, (states_MD, reference_ME.detach(), targets_M), chunk, calls)
    return ConsistencyScores(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def consistency_loss(
    scores: ConsistencyScores, weights_M: Tensor, denominator: float, next_token_weight: float = 0.0
) -> Tensor:
    """The share of M response tokens in the loss of an optimiser step.

    Args:
        scores: of the tokens.
        weights_M: 1 / N of a sample with N response tokens, which makes its share the mean over them.
        denominator: samples of the whole optimiser step, over micro-batches and ranks. (Where an engine averages over
            ranks: divided by their number.)
        next_token_weight: of the next-token loss on the same tokens; 0 is the paper's formula.
    """
    losses = scores.divergences
    if next_token_weight:
        losses = losses + next_token_weight * scores.likelihoods
    return (losses * weights_M).sum() / denominator
