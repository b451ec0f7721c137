"""Group sequence policy optimisation: an answer is one action, and its group is its baseline.

Source: InternVL3.5 (arXiv 2508.18265), equations 4 to 6; GSPO (arXiv 2507.18071), equations 5 to 7. With the rewards
r_i of the G answers y_i to one query:

    A_i = (r_i - mean(r)) / std(r)                                              advantage
    s_i = exp(1 / |y_i| sum_t [log pi(y_it) - log pi_old(y_it)])                importance ratio of the whole answer
    J   = mean_i min(s_i A_i, clip(s_i, 1 - epsilon_low, 1 + epsilon_high) A_i) to be made larger

There is no KL term and no reference network. Where nothing is clipped, the gradient of J with respect to the
log-probability of a token is s_i A_i / |y_i| over the number of answers (GSPO, equation 10).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.objectives.config import GspoObjective
from model.objectives.log_probability import segment_means, segment_sums

# Rewards that differ by less are the same reward, summed in another order.
_SAME_REWARD = 1e-6


class GspoLoss(NamedTuple):
    """The share of some answers in a step's loss, and what to record of them.

    Attributes:
        loss: a scalar.
        ratios: importance ratios [S], for a histogram.
        clipped: [S], which answers are clipped, and so have no gradient.
        entropies: [S], over the tokens of each answer; None where entropies were not given.
        sums: over the answers, without gradient: ``answers`` (their number), ``ratio``, ``clipped_low`` and
            ``clipped_high`` (answers that are clipped), ``tokens``, and ``entropy`` over the tokens, where entropies
            were given. Added over micro-batches and ranks, and divided by ``answers`` or
            ``tokens``, they are the means of the step.
    """

    loss: Tensor
    ratios: Tensor
    clipped: Tensor
    entropies: Tensor | None
    sums: dict[str, Tensor]


class Correction(NamedTuple):
    """Truncated importance weights [S] of answers that another engine sampled, and what to record of them.

    ``sums``: ``tokens``, ``mismatch`` (over the tokens, the absolute difference of the two engines' log-probabilities),
    ``weight`` and ``truncated`` (over the answers).
    """

    weights: Tensor
    sums: dict[str, Tensor]


def group_advantages(rewards_S: Tensor, groups: Sequence[int]) -> Tensor:
    """A: every reward against the others of its group, in units of their standard deviation.

    The standard deviation is that of a sample (over G - 1), as in verl and TRL, without a constant added to it. A group
    of equal rewards, or of one answer, has nothing to compare: its advantages are 0.

    Args:
        rewards_S: one group after the other.
        groups: answers in each group; groups may differ in size.

    Returns:
        [S] in float32, without gradient.
    """
    advantages = []
    for rewards in rewards_S.detach().double().split(list(groups)):
        # The spread, not the standard deviation: three times 0.1 has one above zero, and advantages of 1.
        if len(rewards) > 1 and float(rewards.max() - rewards.min()) > _SAME_REWARD:
            advantages.append((rewards - rewards.mean()) / rewards.std())
        else:
            advantages.append(torch.zeros_like(rewards))
    return torch.cat(advantages).float()


def sequence_ratios(log_probabilities_M: Tensor, old_M: Tensor, lengths: Sequence[int]) -> Tensor:
    """s [S]: the geometric mean of the token ratios of every answer; 1 for an empty answer.

    Args:
        log_probabilities_M: of the tokens of S answers under the network that learns, one answer after the other.
        old_M: of the same tokens under the network as it was when they were sampled.
        lengths: tokens of each answer.
    """
    return segment_means(log_probabilities_M - old_M.detach(), lengths).exp()


def truncated_importance(old_M: Tensor, sampler_M: Tensor, lengths: Sequence[int], cap: float) -> Correction:
    """min(pi_old(y | x) / pi_sampler(y | x), cap) of every answer.

    An inference engine rounds differently from the trainer, or holds weights of the step before, so its answers come
    from another distribution than pi_old. The ratio is that of the whole answer, not of its mean token: it undoes how
    often the answer was drawn. Truncation bounds the variance and leaves a bias (Ionides, Truncated Importance
    Sampling, 2008).

    Args:
        old_M: log-probabilities of the sampled tokens under the trainer's weights at the time of the rollout.
        sampler_M: what the sampling engine reported for them.
        lengths: tokens of each answer.
        cap: largest weight, above 0.
    """
    difference = (old_M - sampler_M).detach()
    ratios = segment_sums(difference, lengths).exp()
    sums = {
        "tokens": difference.new_tensor(len(difference)),
        "mismatch": difference.abs().sum(),
        "weight": ratios.clamp(max=cap).sum(),
        "truncated": (ratios > cap).sum(),
    }
    return Correction(ratios.clamp(max=cap), sums)


def gspo_loss(
    log_probabilities_M: Tensor,
    old_M: Tensor | None,
    lengths: Sequence[int],
    advantages_S: Tensor,
    objective: GspoObjective,
    denominator: float,
    *,
    weights_S: Tensor | None = None,
    entropies_M: Tensor | None = None,
) -> GspoLoss:
    """The share of S answers in the loss of an optimiser step: -J, to be made smaller.

    Args:
        log_probabilities_M: as in ``sequence_ratios``.
        old_M: as in ``sequence_ratios``. None when the network has not changed since the rollout: the ratios are 1.
        lengths: tokens of each answer.
        advantages_S: ``group_advantages`` of the whole rollout; a group need not lie in one micro-batch.
        objective: the clip range.
        denominator: answers of the whole optimiser step, over micro-batches and ranks, those of degenerate groups too.
            (Where an engine averages over ranks: divided by their number.)
        weights_S: ``truncated_importance``, where another engine sampled.
        entropies_M: ``TokenScores.entropies``, to be recorded.

    Raises:
        ValueError: there are not S of everything.
    """
    shapes = {(len(lengths),), *(tuple(given.shape) for given in (advantages_S, weights_S) if given is not None)}
    if len(shapes) > 1:
        raise ValueError(f"lengths, advantages and weights differ in shape: {sorted(shapes)}")
    old_M = log_probabilities_M if old_M is None else old_M
    ratios = sequence_ratios(log_probabilities_M, old_M, lengths)
    low, high = 1 - objective.epsilon_low, 1 + objective.epsilon_high
    gains = torch.minimum(ratios * advantages_S, ratios.clamp(low, high) * advantages_S)
    if weights_S is not None:
        gains = gains * weights_S.detach()
    low_S, high_S = (ratios < low) & (advantages_S < 0), (ratios > high) & (advantages_S > 0)
    sums = {
        "answers": ratios.new_tensor(len(lengths)),
        "ratio": ratios.sum(),
        "clipped_low": low_S.sum(),
        "clipped_high": high_S.sum(),
        "tokens": ratios.new_tensor(len(log_probabilities_M)),
    }
    entropies = None
    if entropies_M is not None:
        sums["entropy"] = entropies_M.sum()
        entropies = segment_sums(entropies_M.detach(), lengths)
    loss, sums = -gains.sum() / denominator, {name: value.detach() for name, value in sums.items()}
    return GspoLoss(loss, ratios.detach(), low_S | high_S, entropies, sums)
