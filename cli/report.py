"""The HTML report of a demo: one file that needs no network, light, readable on a phone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cli import charts
from cli.summary import Summary
from model.data.artifact import write_atomic


@dataclass(frozen=True)
class Example:
    """One held-out row as the model answered it.

    ``image`` is a ``data:`` URI; ``boxes`` are drawn over it: (``truth`` or ``answer``, x, y, width, height), in
    thousandths of the image's sides.
    """

    family: str
    image: str
    question: str
    answer: str
    truth: str
    correct: bool
    boxes: Sequence[tuple[str, float, float, float, float]] = ()


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        losses: (stage, [(step, loss)]) in the order of the line.
        funnel: (operator, rows left, note), from what was collected to what was kept.
        lineage: the steps with their output hashes.
        facts: (name, value) lines of the environment and the run.
    """

    profile: str
    summary: Summary
    losses: Sequence[tuple[str, Sequence[tuple[float, float]]]]
    funnel: Sequence[tuple[str, int, str]]
    lineage: Sequence[charts.LineageNode]
    examples: Sequence[Example]
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)


def _score_charts(summary: Summary) -> list[tuple[str, Markup]]:
    """(stage, picture) of every stage that scored held-out rows."""
    return [
        (
            stage.name,
            Markup(
                charts.score_bars(
                    [
                        charts.ScoreBar(family, s.score, s.low, s.high, s.constant, s.swapped)
                        for family, s in stage.heldout.items()
                    ]
                )
            ),
        )
        for stage in summary.stages
        if stage.heldout
    ]


def render(report: Report) -> str:
    """The page as text."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        profile=report.profile,
        summary=report.summary,
        scores=_score_charts(report.summary),
        losses=[(name, Markup(charts.loss_curve(name, points))) for name, points in report.losses],
        funnel=Markup(charts.funnel(report.funnel)),
        lineage=Markup(charts.lineage_graph(report.lineage)),
        right=[example for example in report.examples if example.correct],
        wrong=[example for example in report.examples if not example.correct],
        facts=report.facts,
    )


def write_report(report: Report, path: Path) -> None:
    """Render to ``path``, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, render(report).encode())
