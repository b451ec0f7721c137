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
    reward); ``length`` (mean tokens), ``cut`` (share that ends at the limit), ``degenerate`` (share whose group
    teaches nothing), ``failed`` (answers without a reward). Of those that have a gradient, where there are any:
    ``learning`` (their number), ``ratio`` (mean), ``clipped_low``, ``clipped_high`` (shares), ``entropy`` and
    ``mismatch`` (per token), ``importance`` (mean weight), ``truncated`` (share), and ``ratio_histogram/00`` to ``/14``
    (shares by ``RATIO_EDGES``). By task family, of the same answers each: ``reward/<family>``, ``accuracy/``,
    ``length/``, ``entropy/`` and ``clipped/`` (on either side).

    Attributes:
        left_out: queries that are too long.
        counts: over the run: ``answers``, ``failed``, ``cut``, ``degenerate`` answers.
        failures: the first lines that said why a reward could not be had.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self.counts = dict.fromkeys(("answers", "failed", "cut", "degenerate"), 0)
        self.failures: list[str] = []
        self.begin(())

    def begin(self, answers: Sequence[dict[str, Any]]) -> None:
        """The answers of the step that comes, of all processes (``answer_records``)."""
        self._answers, self._order = answers, sorted({answer["family"] for answer in answers})
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._histogram = torch.zeros(len(RATIO_EDGES) + 1)
        self._families = torch.zeros(len(self._order), 4, dtype=torch.float64)

    def add(self, found: GspoLoss, correction: Correction, places: Sequence[int], lengths: Sequence[int]) -> None:
        """What the loss of a micro-batch found of its answers: where they stand among those of ``begin``, and their
        tokens."""
        for name in _SUMS:
            self._sums[name] = self._sums[name] + found.sums[name]
        for name in _CORRECTIONS:
            self._sums[name] = self._sums[name] + correction.sums[name]
        # On the CPU, wherever the network is: what is counted of all micro-batches is added up there.
        bins = torch.bucketize(found.ratios.float().cpu() - 1, torch.tensor(RATIO_EDGES))
        self._histogram = self._histogram + torch.bincount(bins, minlength=len(RATIO_EDGES) + 1)
        assert found.entropies is not None
        family_S = torch.tensor([self._order.index(self._answers[place]["family"]) for place in places])
        counts = (torch.ones(len(places)), torch.tensor(lengths), found.clipped.cpu(), found.entropies.cpu())
        self._families.index_add_(0, family_S, torch.stack([count.double() for count in counts], 1))

    def step_done(self, sum_over_ranks: SumFunction) -> dict[str, float]:
        """The record of the step."""
        names = (*_SUMS, *_CORRECTIONS)
        sums = [float(self._sums[name]) for name in names]
        mine = [*sums, *self._histogram.tolist(), *self._families.flatten().tolist()]
        values = iter(sum_over_ranks(mine))
        found = {name: next(values) for name in names}
        bins = [next(values) for _ in self._histogram]
        families = {family: [next(values) for _ in range(4)] for family in self._order}
        self._count()
        return of_answers(self._answers) | _of_learning(found, bins) | _of_families(families)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"counts": dict(self.counts), "failures": list(self.failures)}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.counts, self.failures = dict(state["counts"]), list(state["failures"])

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
    record = _means(answers, ("reward", "accuracy", "format"), ("length", "cut", "degenerate"))
    record["failed"] = float(sum(bool(answer["failure"]) for answer in answers))
    for family in sorted({answer["family"] for answer in answers}):
        of_family = [answer for answer in answers if answer["family"] == family]
        means = _means(of_family, ("reward", "accuracy"), ("length",))
        record |= {f"{name}/{family}": value for name, value in means.items()}
    return record


def _means(answers: Sequence[dict[str, Any]], of_judged: Sequence[str], of_all: Sequence[str]) -> dict[str, float]:
    """Means over the answers that have a reward, where there are any, and over all."""
    judged = [answer for answer in answers if answer["reward"] is not None]
    means = {name: _mean(judged, name) for name in of_judged} if judged else {}
    return means | {name: _mean(answers, name) for name in of_all}


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


def _of_families(families: dict[str, list[float]]) -> dict[str, float]:
    """Of each family: answers, tokens, clipped answers and entropy, as the losses found them."""
    record = {}
    for family, (answers, tokens, clipped, entropy) in families.items():
        if answers:
            record |= {f"entropy/{family}": entropy / tokens, f"clipped/{family}": clipped / answers}
    return record
