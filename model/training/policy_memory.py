"""What a policy stage records of every step, and what it counts over the run."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.objectives.gspo import Correction, GspoLoss
from model.training.stage import SumFunction

RATIO_EDGES = (-1e-1, -3e-2, -1e-2, -3e-3, -1e-3, -3e-4, -1e-4, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Borders of the histogram of importance ratios, minus 1. The first and the last bin are open."""

_SUMS = ("answers", "ratio", "clipped_low", "clipped_high", "tokens", "entropy")
_CORRECTIONS = ("mismatch", "weight", "truncated")
_MOST_FAILURES = 20


class PolicyMemory:
    """``StageMemory`` of a policy stage: nothing that the loss needs, everything that its curves need.

    A record holds, of all answers of a step: ``reward``, ``accuracy`` and ``format`` (means over those that have a
    reward), the first two also by task family as ``reward/<family>``; ``length`` (mean tokens), ``cut`` (share that
    ends at the limit), ``degenerate`` (share whose group teaches nothing), ``failed`` (answers without a reward). Of
    those that have a gradient, where there are any: ``learning`` (their number), ``ratio`` (mean), ``clipped_low``,
    ``clipped_high`` (shares), ``entropy`` and ``mismatch`` (per token), ``importance`` (mean weight), ``truncated``
    (share), and ``ratio_histogram/00`` to ``/14`` (shares by ``RATIO_EDGES``).

    Attributes:
        left_out: queries that are too long.
        counts: over the run: ``answers``, ``failed``, ``cut``, ``degenerate`` answers.
        failures: the first lines that said why a reward could not be had.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self.counts = dict.fromkeys(("answers", "failed", "cut", "degenerate"), 0)
        self.failures: list[str] = []
        self._answers: Sequence[dict[str, Any]] = ()
        self._clear()

    def begin(self, answers: Sequence[dict[str, Any]]) -> None:
        """The answers of the step that comes, of all processes (``answer_records``)."""
        self._answers = answers
        self._clear()

    def add(self, found: GspoLoss, correction: Correction) -> None:
        """What the loss of a micro-batch found of its answers."""
        for name in _SUMS:
            self._sums[name] = self._sums[name] + found.sums[name]
        for name in _CORRECTIONS:
            self._sums[name] = self._sums[name] + correction.sums[name]
        # On the CPU, wherever the network is: what is counted of all micro-batches is added up there.
        bins = torch.bucketize(found.ratios.float().cpu() - 1, torch.tensor(RATIO_EDGES))
        self._histogram = self._histogram + torch.bincount(bins, minlength=len(RATIO_EDGES) + 1)

    def step_done(self, sum_over_ranks: SumFunction) -> dict[str, float]:
        """The record of the step."""
        names = (*_SUMS, *_CORRECTIONS)
        values = sum_over_ranks([*(float(self._sums[name]) for name in names), *self._histogram.tolist()])
        sums, bins = dict(zip(names, values, strict=False)), values[len(names) :]
        self._count()
        return of_answers(self._answers) | _of_learning(sums, bins)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"counts": dict(self.counts), "failures": list(self.failures)}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.counts, self.failures = dict(state["counts"]), list(state["failures"])

    def _clear(self) -> None:
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._histogram = torch.zeros(len(RATIO_EDGES) + 1)

    def _count(self) -> None:
        answers = self._answers
        self.counts["answers"] += len(answers)
        self.counts["failed"] += sum(bool(answer["failure"]) for answer in answers)
        for name in ("cut", "degenerate"):
            self.counts[name] += sum(answer[name] for answer in answers)
        failed = [answer["failure"] for answer in answers if answer["failure"]]
        self.failures = [*self.failures, *failed][:_MOST_FAILURES]


def of_answers(answers: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The part of a step's record that is known before its update."""
    judged = [answer for answer in answers if answer["reward"] is not None]
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer in judged:
        families[answer["family"]].append(answer)
    record = {f"{name}/{family}": _mean(found, name) for family, found in sorted(families.items()) for name in _SPLIT}
    if judged:
        record |= {name: _mean(judged, name) for name in ("reward", "accuracy", "format")}
    record |= {name: _mean(answers, name) for name in ("length", "cut", "degenerate")}
    return record | {"failed": float(sum(bool(answer["failure"]) for answer in answers))}


_SPLIT = ("reward", "accuracy")


def _mean(answers: Sequence[dict[str, Any]], name: str) -> float:
    return sum(answer[name] for answer in answers) / len(answers)


def _of_learning(sums: dict[str, float], bins: Sequence[float]) -> dict[str, float]:
    """The part that the losses found."""
    answers, tokens = sums["answers"], sums["tokens"]
    if not answers:
        return {"learning": 0.0}
    record = {"learning": answers, "importance": sums["weight"] / answers}
    record |= {name: sums[name] / answers for name in ("ratio", "clipped_low", "clipped_high", "truncated")}
    record |= {name: sums[name] / tokens for name in ("entropy", "mismatch")}
    return record | {f"ratio_histogram/{number:02d}": count / answers for number, count in enumerate(bins)}
