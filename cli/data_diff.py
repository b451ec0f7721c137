"""``fovea data diff``: what changed between two datasets."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from model.data.difference import Difference
    from model.data.summary import Summary

_VALUES = 20


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="Dataset directory, the older one.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Dataset directory, the newer one.")],
    examples: Annotated[int, typer.Option("--examples", min=0, max=1000, help="Ids to name of each kind.")] = 5,
    machine: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Compare two datasets: rows added, removed and changed, by their ids; shares of tasks, sources and licences.

    Example: `fovea data diff out/line/collect/corpus out/line/curate/questions`
    """
    from model.data.difference import compare
    from model.data.shards import open_dataset

    found = compare(open_dataset(before), open_dataset(after), examples)
    if machine:
        print(json.dumps(_record(found), sort_keys=True))
        return
    _show(found)


def _record(found: "Difference") -> dict[str, Any]:
    return vars(found) | {"before": _summary(found.before), "after": _summary(found.after)}


def _summary(summary: "Summary") -> dict[str, Any]:
    return vars(summary) | {"reasons": _named(summary.reasons)}


def _named(reasons: Counter[tuple[str, str]]) -> Counter[str]:
    return Counter({f"{step}: {reason}": count for (step, reason), count in reasons.items()})


def _show(found: "Difference") -> None:
    from cli.tables import stdout

    console = stdout()
    old, new = found.before, found.after
    print(f"rows {old.rows:,} -> {new.rows:,}, rejects {old.rejects:,} -> {new.rejects:,}")
    columns = ", ".join(f"{name} {count:,}" for name, count in found.columns.most_common())
    print(f"added {found.added:,}, removed {found.removed:,}, changed {found.changed:,}, same {found.same:,}")
    if columns:
        print(f"changed columns: {columns}")
    if found.moved:
        print("the rows that both have stand in another order")
    for side, count in zip("AB", found.repeated, strict=True):
        if count:
            print(f"{side}: {count:,} rows have the id of an earlier row and were not compared")
    for kind, ids in found.examples.items():
        for text in ids:
            print(f"{kind}: {_printable(text)}")
    for name, values in old.shares.items():
        console.print(_share_table(name, values, new.shares[name]))
    reasons = [_named(side.reasons) for side in (old, new)]
    if any(reasons):
        console.print(_share_table("rejects", *reasons))


def _share_table(title: str, before: Counter[str], after: Counter[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title, "A", "B", "share A", "share B", "points")
    totals = max(before.total(), 1), max(after.total(), 1)
    ordered = sorted(before.keys() | after.keys(), key=lambda value: (-max(before[value], after[value]), value))
    for value in ordered[:_VALUES]:
        share = before[value] / totals[0], after[value] / totals[1]
        numbers = (f"{before[value]:,}", f"{after[value]:,}", f"{share[0]:.1%}", f"{share[1]:.1%}")
        table.add_row(Text(_printable(value)), *numbers, f"{100 * (share[1] - share[0]):+.1f}")
    if len(ordered) > _VALUES:
        table.add_row(f"and {len(ordered) - _VALUES} more", "", "", "", "", "")
    return table


def _printable(text: str) -> str:
    """A dataset's text as one line that cannot steer a terminal."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line[:200]
