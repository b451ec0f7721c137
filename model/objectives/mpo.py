"""Mixed preference optimisation: which of two answers is better, whether each is good, and how the better one is made.

Source: MPO (arXiv 2411.10442), equations 3 to 8, as in InternVL3.5 (arXiv 2508.18265), section 2.3, with the log-ratio
h(y) = log pi(y | x) - log pi_0(y | x) of an answer, summed over its tokens:

    L   = w_p L_p + w_q L_q + w_g L_g                                       (3)
    L_p = -log sigmoid(beta h(y_c) - beta h(y_r))                           (4), of DPO
    L_q = -log sigmoid(beta h(y_c) - delta)
          -log sigmoid(-(beta h(y_r) - delta))                              (5 to 7), of BCO
    L_g = -log pi(y_c | x) / |y_c|                                          (8), or over a constant

delta is the mean of the rewards beta h of all answers of the optimiser steps before (``RunningMean``).
docs/objectives.md says where public code differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from model.objectives.config import MpoObjective


class PairLogProbabilities(NamedTuple):
    """log pi(y | x) of the chosen [P] and the rejected [P] answer of P pairs, summed over each answer's tokens."""

    chosen: Tensor
    rejected: Tensor


class MpoLoss(NamedTuple):
    """The share of some pairs in a step's loss, and what to record of them.

    Attributes:
        loss: a scalar.
        sums: over the pairs, without gradient: ``pairs`` (their number), ``preference``, ``quality``, ``generation``
            (the terms without their weights), ``chosen_reward``, ``rejected_reward`` (beta h), ``correct`` (pairs whose
            chosen reward is the higher one). Added over micro-batches and ranks and divided by ``pairs`` they are the
            means of the step.
    """

    loss: Tensor
    sums: dict[str, Tensor]


@dataclass(frozen=True)
class RunningMean:
    """The mean of all numbers so far: delta, and what a checkpoint keeps of it.

    Every rank holds the same value: they add their totals and counts (``Engine.sum``), and each adds the result.
    """

    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """The mean; 0 of nothing, which is every reward before the first update."""
        return self.total / self.count if self.count else 0.0

    def add(self, total: float, count: int) -> "RunningMean":
        """With ``count`` more numbers that add up to ``total``, of all micro-batches and ranks of a step."""
        return RunningMean(self.total + total, self.count + count)

    def add_rewards(self, sums: Mapping[str, float]) -> "RunningMean":
        """With the rewards of a step: ``MpoLoss.sums``, added over its micro-batches and ranks."""
        return self.add(float(sums["chosen_reward"] + sums["rejected_reward"]), 2 * round(float(sums["pairs"])))

    def state(self) -> dict[str, float]:
        """For a checkpoint: JSON keeps it to the last bit."""
        return {"total": self.total, "count": self.count}

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> "RunningMean":
        """What ``state`` gave."""
        return cls(float(state["total"]), int(state["count"]))


def preference_losses(chosen_reward_P: Tensor, rejected_reward_P: Tensor) -> Tensor:
    """L_p of every pair [P] (MPO, equation 4; DPO, arXiv 2305.18290, equation 7) from rewards beta h [P]."""
    return -F.logsigmoid(chosen_reward_P - rejected_reward_P)


def quality_losses(chosen_reward_P: Tensor, rejected_reward_P: Tensor, delta: float) -> Tensor:
    """L_q of every pair [P]: the sum of both answers' terms (MPO, equations 5 to 7; BCO, arXiv 2404.04656)."""
    return -F.logsigmoid(chosen_reward_P - delta) - F.logsigmoid(delta - rejected_reward_P)


def generation_losses(chosen_P: Tensor, chosen_lengths: Sequence[int], length: float | None = None) -> Tensor:
    """L_g of every pair [P]: the chosen answer's negative log-likelihood per token (MPO, equation 8); 0 of no token.

    Divided by ``length`` where it is given, whatever the answers' own numbers of tokens.
    """
    if length is not None:
        return -chosen_P / length
    return -chosen_P / chosen_P.new_tensor([max(1, tokens) for tokens in chosen_lengths])


def mpo_loss(
    policy: PairLogProbabilities,
    reference: PairLogProbabilities,
    chosen_lengths: Sequence[int],
    objective: MpoObjective,
    delta: float,
    denominator: float,
) -> MpoLoss:
    """The share of P pairs in the loss of an optimiser step.

    Args:
        policy: of the network that learns.
        reference: of the network that training started from; without gradient.
        chosen_lengths: tokens of every chosen answer.
        objective: weights and beta.
        delta: ``RunningMean.mean`` of the steps before: the same for all micro-batches and ranks of a step, so that
            the step's loss does not depend on how the step is cut.
        denominator: pairs of the whole optimiser step, over micro-batches and ranks, so that the sum of the
            micro-batch losses is the loss of the step. (Where an engine averages over ranks: divided by their number.)

    Raises:
        ValueError: there are not P of everything.
    """
    pairs = len(chosen_lengths)
    if any(given.shape != (pairs,) for given in (*policy, *reference)):
        shapes = [tuple(given.shape) for given in (*policy, *reference)]
        raise ValueError(f"{pairs} chosen lengths, but log-probabilities of shapes {shapes}")
    chosen_reward, rejected_reward = (
        objective.beta * (given - fixed.detach()) for given, fixed in zip(policy, reference, strict=True)
    )
    terms = {
        "preference": preference_losses(chosen_reward, rejected_reward).sum(),
        "quality": quality_losses(chosen_reward, rejected_reward, delta).sum(),
        "generation": generation_losses(policy.chosen, chosen_lengths, objective.generation_length).sum(),
    }
    loss = (
        objective.preference_weight * terms["preference"]
        + objective.quality_weight * terms["quality"]
        + objective.generation_weight * terms["generation"]
    ) / denominator
    watched = terms | {
        "pairs": chosen_reward.new_tensor(pairs),
        "chosen_reward": chosen_reward.sum(),
        "rejected_reward": rejected_reward.sum(),
        "correct": (chosen_reward > rejected_reward).sum(),
    }
    return MpoLoss(loss, {name: value.detach() for name, value in watched.items()})
