"""``select_queries``: the rows that the model answers rightly sometimes, for online reinforcement learning."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from components.context import StepContext, StepResult
from components.rollout_page import Example, Histogram, Page, accuracy_bins, example
from components.rollouts import REPORT, read_rollouts
from components.select_queries.config import SelectQueriesConfig
from model.data.artifact import write_atomic
from model.data.errors import InputError
from model.data.schema import Reject, Row
from model.data.shards import Dataset, open_dataset, write_dataset

STEP = "select_queries"
_PER_FAMILY, _EXAMPLES = 3, 24
_COLUMNS = ("queries", "accuracy", "too hard", "kept", "too easy", "not judged", "no rollouts")


@dataclass
class _Selection:
    """Why each row is kept or left out, and what is shown of it."""

    config: SelectQueriesConfig
    accuracies: dict[str, float | None]
    families: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sums: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    shown: dict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))

    def verdict(self, row_id: str) -> str:
        """The column of ``_COLUMNS`` that a row counts in."""
        accuracy = self.accuracies.get(row_id)
        if accuracy is None:
            return "not judged" if row_id in self.accuracies else "no rollouts"
        if accuracy < self.config.lowest_accuracy:
            return "too hard"
        return "kept" if accuracy <= self.config.highest_accuracy else "too easy"

    def count(self, row: Row) -> bool:
        """Count a row; whether it is kept."""
        verdict, accuracy, family = self.verdict(row["id"]), self.accuracies.get(row["id"]), self.families[row["task"]]
        family[verdict] += 1
        if accuracy is not None:
            self.sums[row["task"]] += accuracy
        if verdict != "kept":
            rate = "" if accuracy is None else f": accuracy {accuracy:.3f}"
            self.rejects.append(Reject(id=row["id"], step=STEP, reason=f"{verdict}{rate}"))
            return False
        shown = self.shown[row["task"]]
        if len(shown) < _PER_FAMILY and sum(map(len, self.shown.values())) < _EXAMPLES:
            texts = [("reference", True, row["messages"][-1]["content"])]
            shown.append(example(row, f"{row['task']}, accuracy {accuracy:.2f}", texts))
        return True

    def total(self, verdict: str) -> int:
        """Rows with this verdict."""
        return sum(family[verdict] for family in self.families.values())


def run(config: SelectQueriesConfig, *, rows: Path, rollouts: Path, queries: Path, context: StepContext) -> StepResult:
    """Keep the rows whose accuracy over their rollouts is neither too low nor too high.

    Args:
        config: the bounds of the accuracy, both inclusive.
        rows: the dataset of questions that ``rollouts`` were sampled for.
        rollouts: what build_preferences wrote.
        queries: output; the rows that are kept, as they are, every other one as a reject, and ``report.html``.
        context: progress.

    Raises:
        InputError: an input is missing or damaged, or no row is kept.
    """
    dataset = open_dataset(rows)
    answered = {query.id: query.accuracy for query in read_rollouts(rollouts)}
    selection = _Selection(config, answered)
    context.progress("selecting", 0, len(dataset))
    if not any(selection.verdict(row_id) == "kept" for row_id in _ids(dataset)):
        raise InputError(f"{STEP}: {_why_none(config, answered, dataset)}")

    def kept() -> Iterator[Row]:
        for number, row in enumerate(dataset.rows(), start=1):
            if selection.count(row):
                yield row
            context.progress("selecting", number, len(dataset))

    write_dataset(queries, kept(), shards=config.shards, rejects=selection.rejects)
    numbers = {"rows": float(len(dataset)), "rollouts_of_no_row": float(len(answered.keys() - set(_ids(dataset))))}
    numbers |= {name.replace(" ", "_"): float(selection.total(name)) for name in _COLUMNS[2:]}
    write_atomic(queries / REPORT, _page(config, selection, numbers))
    return StepResult(numbers=numbers)


def _ids(dataset: Dataset) -> Iterator[str]:
    return (row["id"] for row in dataset.rows())


def _why_none(config: SelectQueriesConfig, answered: dict[str, float | None], dataset: Dataset) -> str:
    """The histogram in words."""
    known = [answered.get(row_id) for row_id in _ids(dataset)]
    bins = accuracy_bins([accuracy for accuracy in known if accuracy is not None])
    counts = ", ".join(f"{count} at {label}" for label, count in bins.items() if count)
    missing = sum(row_id not in answered for row_id in _ids(dataset))
    return (
        f"no row has an accuracy between {config.lowest_accuracy} and {config.highest_accuracy}: "
        f"of {len(dataset)} rows {counts or 'none has judged answers'}; {missing} have no rollouts"
    )


def _page(config: SelectQueriesConfig, selection: _Selection, numbers: dict[str, float]) -> bytes:
    summary = [
        f"{selection.total('kept'):,} of {numbers['rows']:,.0f} rows have an accuracy between "
        f"{config.lowest_accuracy} and {config.highest_accuracy} over their rollouts.",
        f"{selection.total('no rollouts'):,} rows have no rollouts, {selection.total('not judged'):,} have answers "
        f"that nothing judges; {numbers['rollouts_of_no_row']:,.0f} rollouts are of rows that are not in the dataset.",
    ]
    families = {}
    for name in sorted(selection.families):
        counts = selection.families[name]
        judged = sum(counts[verdict] for verdict in ("too hard", "kept", "too easy"))
        accuracy = f"{100 * selection.sums[name] / judged:.1f} %" if judged else "not judged"
        families[name] = [f"{counts.total():,}", accuracy, *(f"{counts[verdict]:,}" for verdict in _COLUMNS[2:])]
    histogram = Histogram(
        "Accuracy of a query",
        "All queries with judged answers, by the share of right ones.",
        accuracy_bins([accuracy for accuracy in selection.accuracies.values() if accuracy is not None]),
    )
    shown = [one for family in sorted(selection.shown) for one in selection.shown[family]]
    return Page("Queries for online learning", summary, [histogram], _COLUMNS, families, shown).render()
