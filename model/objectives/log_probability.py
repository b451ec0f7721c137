"""Log-probabilities of given tokens from hidden states, chunk by chunk, and their sums and means per answer.

The logits of a batch are its largest tensor: 16,384 positions of Qwen3 are 10 GB in float32. Preference and
reinforcement learning need one number a position of them, so they exist for ``chunk`` positions at a time, in the
forward and again in the backward pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.objectives.chunking import by_chunks


class TokenScores(NamedTuple):
    """Of M positions: log-probabilities [M] of their targets, and entropies [M] in nats, which carry no gradient."""

    log_probabilities: Tensor
    entropies: Tensor


def token_log_probabilities(
    states_MD: Tensor, head: nn.Module, targets_M: Tensor, chunk: int, calls: int | None = None
) -> Tensor:
    """log softmax(head(states))[targets], with the logits of at most ``chunk`` positions in memory at a time.

    Args:
        states_MD: final hidden states at the positions before the targets; M may be 0.
        head: [m, D] to [m, V]; called as a module, so that hooks (gathering of divided weights) and adapters work.
        targets_M: token ids; every id counts, 0 too.
        chunk: most positions whose logits exist at the same time. When all M fit, they are kept for the backward pass.
        calls: how often ``head`` is called; as often as M needs when None. Ranks that divide the head's weights must
            all call it equally often, so there it comes from what all ranks know, as in ``chunked_next_token_loss``.

    Returns:
        [M] in float32, connected to states and head even when M is 0.

    Raises:
        ValueError: ``calls`` pieces of ``chunk`` positions do not hold M.
    """

    def piece(states: Tensor, targets: Tensor) -> Tensor:
        return _log_probabilities(head(states), targets)

    return torch.cat(by_chunks(piece, (states_MD, targets_M), chunk, calls))


def token_scores(
    states_MD: Tensor, head: nn.Module, targets_M: Tensor, chunk: int, calls: int | None = None
) -> TokenScores:
    """``token_log_probabilities``, and the entropy of every position's distribution from the same logits.

    The entropy is there to be watched: it has no gradient, and it is not computed again in the backward pass.
    """

    def piece(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)
        # The entropy stands last: recomputation stops once the backward pass has what it needs.
        return _log_probabilities(logits, targets), _entropies(logits.detach())

    scores = by_chunks(piece, (states_MD, targets_M), chunk, calls)
    return TokenScores(*(torch.cat(parts) for parts in zip(*scores, strict=True)))


def segment_sums(values_M: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sums over consecutive segments: of token log-probabilities, log pi(y | x) of every answer.

    Each segment is summed by itself, so that no neighbour changes the last bits of a sum.

    Args:
        values_M: of the tokens of S answers, one answer after the other.
        lengths: tokens of each answer; they add up to M. An empty answer has the sum 0.

    Returns:
        [S].
    """
    return torch.stack([segment.sum() for segment in values_M.split(list(lengths))])


def segment_means(values_M: Tensor, lengths: Sequence[int]) -> Tensor:
    """Means over consecutive segments [S]; an empty segment has the mean 0."""
    return segment_sums(values_M, lengths) / values_M.new_tensor([max(1, length) for length in lengths])


def _log_probabilities(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    return -F.cross_entropy(logits_MV.float(), targets_M, reduction="none")


def _entropies(logits_MV: Tensor) -> Tensor:
    # entr(0) is 0: a token whose logit is minus infinity adds nothing.
    return torch.special.entr(logits_MV.float().softmax(-1)).sum(-1)
