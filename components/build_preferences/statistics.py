"""What came out of the answers: counts, histograms, and pairs to look at."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from components.build_preferences.pairing import Pair
from components.build_preferences.sampling import Sampled
from components.rollout_page import Example, Histogram, Page, accuracy_bins, doubling_bins, example
from components.rollouts import UNJUDGED, QueryRollouts

_PER_FAMILY, _EXAMPLES = 3, 36
_COLUMNS = (
    "queries",
    "accuracy",
    "right",
    "wrong",
    "malformed",
    "failed",
    "cut",
    "mean tokens",
    "pairs",
    "chosen tokens",
    "rejected tokens",
)


@dataclass
class _Mean:
    total: int = 0
    count: int = 0

    def add(self, tokens: int) -> None:
        self.total += tokens
        self.count += 1

    @property
    def value(self) -> float:
        return self.total / max(1, self.count)

    @property
    def cell(self) -> str:
        return f"{self.value:.1f}" if self.count else "-"


@dataclass
class _Family:
    queries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    tokens: int = 0
    pairs: int = 0
    chosen: _Mean = field(default_factory=_Mean)
    rejected: _Mean = field(default_factory=_Mean)

    def cells(self) -> list[str]:
        """In the order of the columns."""
        judged = sum(count for outcome, count in self.outcomes.items() if outcome not in UNJUDGED)
        accuracy = f"{100 * self.outcomes['right'] / judged:.1f} %" if judged else "not judged"
        counts = [self.outcomes[name] for name in ("right", "wrong", "malformed", "failed")]
        mean = self.tokens / max(1, self.outcomes.total())
        return [
            f"{self.queries:,}",
            accuracy,
            *(f"{count:,}" for count in (*counts, self.cut)),
            f"{mean:.1f}",
            f"{self.pairs:,}",
            self.chosen.cell,
            self.rejected.cell,
        ]


@dataclass
class Statistics:
    """Counts over the queries that ``add`` was given.

    Attributes:
        rollouts: answers per query.
        pairs_per_query: most pairs of a query.
        refused: rows whose scorer rejects their own reference.
        beyond: rows beyond ``max_queries``.
    """

    rollouts: int
    pairs_per_query: int
    refused: int
    beyond: int
    pairs: int = 0
    unasked: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    families: dict[str, _Family] = field(default_factory=lambda: defaultdict(_Family))
    accuracies: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    of_query: list[int] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[Example]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sampled: Sampled, pairs: Sequence[Pair]) -> None:
        """Count one query."""
        if sampled.reason is not None:
            self.unasked += 1
            return
        family = self.families[sampled.row["task"]]
        family.queries += 1
        family.pairs += len(pairs)
        for answer in sampled.answers:
            family.outcomes[answer.outcome] += 1
            family.cut += answer.finish_reason == "length"
            family.tokens += answer.tokens
            self.lengths.append(answer.tokens)
            if answer.failure:
                self.failures[answer.failure] += 1
        tokens = {answer.text: answer.tokens for answer in sampled.answers}
        for pair in pairs:
            if pair.kind != "dropout":  # there nobody sampled the chosen answer, nor all of the rejected one
                family.chosen.add(tokens[pair.chosen])
                family.rejected.add(tokens[pair.rejected])
        query = QueryRollouts(sampled.row["id"], sampled.row["task"], tuple(sampled.answers))
        if query.accuracy is not None:
            self.accuracies.append(query.accuracy)
        self.pairs += len(pairs)
        self.of_query.append(len(pairs))
        self.kinds.update(pair.kind for pair in pairs)
        if pairs:
            self._show(sampled, pairs[0], query.accuracy)

    def _show(self, sampled: Sampled, pair: Pair, accuracy: float | None) -> None:
        shown = self.examples[sampled.row["task"], pair.kind]
        if len(shown) < _PER_FAMILY and sum(map(len, self.examples.values())) < _EXAMPLES:
            rate = "" if accuracy is None else f", accuracy {accuracy:.2f}"
            texts = [("chosen", True, pair.chosen), ("rejected", False, pair.rejected)]
            shown.append(example(sampled.row, f"{sampled.row['task']}, {pair.kind}{rate}", texts))

    def outcome(self, name: str) -> int:
        """Answers with this outcome."""
        return sum(family.outcomes[name] for family in self.families.values())

    @staticmethod
    def _mean_tokens(means: Iterable[_Mean]) -> float:
        found = list(means)
        return _Mean(sum(mean.total for mean in found), sum(mean.count for mean in found)).value

    def numbers(self) -> dict[str, float]:
        """For the step's result.

        ``chosen_tokens`` and ``rejected_tokens`` are means over the pairs of two sampled answers: the first is what
        ``mpo.objective.generation_length`` may be set to.
        """
        numbers = {
            "queries": len(self.of_query),
            "queries_with_pairs": sum(count > 0 for count in self.of_query),
            "queries_not_asked": self.unasked + self.refused + self.beyond,
            "accuracy": sum(self.accuracies) / max(1, len(self.accuracies)),
            "answer_tokens": sum(self.lengths),
            "answers_cut": sum(family.cut for family in self.families.values()),
            "pairs": self.pairs,
            "chosen_tokens": self._mean_tokens(family.chosen for family in self.families.values()),
            "rejected_tokens": self._mean_tokens(family.rejected for family in self.families.values()),
        }
        for name in ("right", "wrong", "malformed", "failed", "continued"):
            numbers[f"answers_{name}"] = self.outcome(name)
        for kind in ("correctness", "format", "dropout"):
            numbers[f"pairs_{kind}"] = self.kinds[kind]
        return {name: float(number) for name, number in numbers.items()}

    def why_no_pairs(self) -> str:
        """The numbers behind an empty result, in one line."""
        right = sum(accuracy == 1 for accuracy in self.accuracies)
        wrong = sum(accuracy == 0 for accuracy in self.accuracies)
        parts = [
            f"{len(self.accuracies)} queries x {self.rollouts} answers: {right} queries answered always rightly, "
            f"{wrong} never, {len(self.accuracies) - right - wrong} sometimes",
            f"{self.outcome('wrong')} answers wrong, {self.outcome('malformed')} malformed (cut, unreadable, or not in "
            f"the format asked for), {self.outcome('failed')} not judged",
        ]
        if continued := self.outcome("continued"):
            parts.append(f"{continued} continuations without the image gave nothing to learn from")
        if left := self.unasked + self.refused:
            parts.append(f"{left} rows could not be asked")
        return "; ".join(parts)

    def page(self) -> bytes:
        """``report.html``."""
        counts = Counter(self.of_query)
        wide = range(max(counts, default=0) + 1)
        answers = sum(family.outcomes.total() for family in self.families.values())
        summary = [
            f"{len(self.of_query):,} queries, {answers:,} answers, {self.pairs:,} pairs: "
            + ", ".join(f"{self.kinds[kind]:,} {kind}" for kind in ("correctness", "format", "dropout")),
            f"Not asked: {self.beyond:,} rows beyond max_queries, {self.refused:,} whose scorer rejects their own "
            f"reference, {self.unasked:,} for their prompt. The rejects of the pairs name every row without one.",
        ]
        summary += [f"Not judged, {count:,} answers: {reason}" for reason, count in self.failures.most_common(5)]
        histograms = [
            Histogram(
                "Accuracy of a query",
                f"Queries by the share of right ones among their {self.rollouts} answers.",
                accuracy_bins(self.accuracies),
            ),
            Histogram(
                "Pairs of a query",
                f"At most {self.pairs_per_query}.",
                {str(number): counts[number] for number in wide},
            ),
            Histogram("Length of an answer", "Answers by sampled tokens.", doubling_bins(self.lengths)),
        ]
        families = {name: self.families[name].cells() for name in sorted(self.families)}
        shown = [one for key in sorted(self.examples) for one in self.examples[key]]
        return Page("Preference pairs", summary, histograms, _COLUMNS, families, shown).render()
