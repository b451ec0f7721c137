"""The tables that commands print: stages and held-out scores."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cli.progress import in_words


def stdout() -> Console:
    """A console on standard output; wide enough for the tables where the width is not known."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def stage_table(records: list[dict[str, Any]], lineage: Mapping[str, dict[str, Any]]) -> Table:
    """One line a step: seconds, whether it came from the store, loss, tokens, mean held-out score, key."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for name in ("seconds", "cached", "tokens", "loss", "held-out"):
        table.add_column(name, justify="right")
    table.add_column("key")
    for record in records:
        found = lineage[record["step"]]
        scores = [score["score"] for score in found["heldout"].values()]
        table.add_row(
            record["step"],
            f"{record['seconds']:.1f}",
            "yes" if record["cached"] else "",
            tokens_of(found, "{:,}"),
            loss_of(found, "{:.4f}"),
            f"{sum(scores) / len(scores):.3f}" if scores else "",
            record["key"][:12],
        )
    return table


def tokens_of(lineage: Mapping[str, Any], shape: str) -> str:
    """Tokens a step trained on, formatted; empty where it trained nothing."""
    tokens = lineage["numbers"].get("tokens")
    return "" if tokens is None else shape.format(int(tokens))


def loss_of(lineage: Mapping[str, Any], shape: str) -> str:
    """The last training loss of a step, formatted; empty where it trained nothing."""
    loss = lineage["numbers"].get("loss")
    return "" if loss is None else shape.format(loss)


def score_table(families: Mapping[str, Mapping[str, Any]]) -> Table:
    """Held-out scores: ``families`` maps a task family to {score, low, high, n, constant, swapped, unparsed}."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("family")
    _add_score_columns(table)
    for name in ("unparsed", "rows"):
        table.add_column(name, justify="right")
    for family, score in families.items():
        table.add_row(family, *_score_cells(score), str(score["unparsed"]), str(score["n"]))
    return table


def demo_table(records: list[dict[str, Any]], lineage: Mapping[str, dict[str, Any]]) -> Table:
    """Every step with its seconds, tokens and loss; the mean of the families where training scored a sample of them,
    and a line for each family where ``evaluate`` scored everything."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for name in ("seconds", "tokens", "loss"):
        table.add_column(name, justify="right")
    table.add_column("family")
    _add_score_columns(table)
    for record in records:
        found = lineage[record["step"]]
        seconds = f"{record['seconds']:.1f}" + (" *" if record["cached"] else "  ")
        head = [record["step"], seconds, tokens_of(found, "{:,}"), loss_of(found, "{:.4f}")]
        scores = found["heldout"]
        if record["step"] == "evaluate":
            for family, score in scores.items():
                table.add_row(*head, family, *_score_cells(score))
                head = [""] * len(head)
        elif scores:
            mean = sum(score["score"] for score in scores.values()) / len(scores)
            table.add_row(*head, f"mean of {len(scores)}", f"{mean:.3f}")
        else:
            table.add_row(*head)
    if any(record["cached"] for record in records):
        table.caption, table.caption_justify = "* from the store", "left"
    return table


def _add_score_columns(table: Table) -> None:
    for name in ("score", "95 % interval", "best constant", "images swapped"):
        table.add_column(name, justify="right")


def _score_cells(score: Mapping[str, Any]) -> list[str]:
    swapped = "" if score["swapped"] is None else f"{score['swapped']:.3f}"
    return [f"{score['score']:.3f}", f"{score['low']:.3f} to {score['high']:.3f}", f"{score['constant']:.3f}", swapped]


def one_line_total(steps: int, cached: int, seconds: float) -> str:
    """For example ``8 steps in 3 min 05 s, 5 of them from the store``."""
    return f"{steps} steps in {in_words(seconds)}" + (f", {cached} of them from the store" if cached else "")
