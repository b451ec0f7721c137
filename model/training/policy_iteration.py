"""A rollout that is complete, and what is known of its answers before they are learned from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from model.data.schema import Row
from model.objectives.gspo import group_advantages
from model.training.policy_store import Group


class Iteration:
    """A rollout that is complete: its groups, their advantages, and the log-probabilities before the first update.

    An answer has a slot: answers lie group after group, ``responses`` in each.

    Attributes:
        number: from 0.
        groups: by query.
        advantages: of every slot; 0 where the answer is no part of its group.
        old: log-probabilities of the tokens of every slot of the second and later steps; None in an iteration of one
            step, in which no answer meets another network than the one that sampled it.
    """

    def __init__(self, number: int, groups: Sequence[Group], responses: int) -> None:
        self.number, self.groups, self.responses = number, groups, responses
        self.old: dict[int, np.ndarray] | None = None
        self.advantages = np.zeros(len(groups) * responses, np.float32)
        for group in groups:
            known = np.flatnonzero(~np.isnan(group.rewards))
            if len(known):
                rewards = torch.from_numpy(group.rewards[known])
                self.advantages[group.query * responses + known] = group_advantages(rewards, [len(known)]).numpy()

    def answer(self, slot: int) -> np.ndarray:
        """Token ids of a slot's answer."""
        return self.groups[slot // self.responses].answers[slot % self.responses]

    def sampler(self, slot: int) -> np.ndarray:
        """The sampling engine's log-probabilities of them."""
        return self.groups[slot // self.responses].sampler[slot % self.responses]

    def counts(self, slot: int) -> bool:
        """Whether a slot's answer is part of its group."""
        return not np.isnan(self.groups[slot // self.responses].rewards[slot % self.responses])


def answer_records(iteration: Iteration, slots: Sequence[int], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What is known of the answers of some slots before they are learned from, a record each."""
    records = []
    for slot in slots:
        query, number = divmod(slot, iteration.responses)
        group, first = iteration.groups[query], query * iteration.responses
        known = iteration.counts(slot)
        records.append(
            {
                "family": rows[group.row]["task"],
                "reward": float(group.rewards[number]) if known else None,
                "accuracy": float(group.accuracies[number]),
                "format": float(group.formats[number]),
                "length": len(group.answers[number]),
                "cut": bool(group.cut[number]),
                "degenerate": not iteration.advantages[first : first + iteration.responses].any(),
                "failure": group.failures[number],
            }
        )
    return records
