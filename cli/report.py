"""The HTML report of a demo: one file that needs no network, light, readable on a phone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cli import charts, curves
from cli.curves import Trend
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
class FlashScore:
    """One family's held-out scores by the resolution of its tiles, and the share of visual tokens that routing keeps.

    ``kept`` is None for a family without images; ``compressed`` is the score with every tile compressed, after the
    consistency training.
    """

    family: str
    full: float
    routed: float
    kept: float | None
    compressed: float | None


@dataclass(frozen=True)
class Measures:
    """Both ways to measure what compressing a tile costs, on tiles that the router has not learned from.

    Attributes:
        tiles: how many.
        shares: measure, or the router, to the share of them that it calls compressible.
        router: measure to the share of its labels that the router has too.
        agreement: share of tiles that both measures label alike.
        agreement_many: the same of images with several tiles; None where there are none.
        correlation: of the ranks of both; None where a measure finds no difference.
    """

    tiles: int
    shares: Mapping[str, float]
    router: Mapping[str, float]
    agreement: float
    agreement_many: float | None
    correlation: float | None


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        training: (stage, pictures as SVG) in the order of the line.
        trends: task family, then how its held-out score went from training stage to training stage.
        flash: by family; empty where the line trained no router.
        measures: of the step ``route``; None where it did not compare them.
        kept: share of the visual tokens left of the held-out rows, blank tiles counted; None where nothing routes.
        routed: ``figure`` elements: images in their tiles, as the router saw them.
        funnel: (operator, rows left, note), from what was collected to what was kept.
        lineage: the steps with their output hashes.
        facts: (name, value) lines of the environment and the run.
    """

    profile: str
    summary: Summary
    training: Sequence[tuple[str, Sequence[str]]]
    trends: Sequence[Trend]
    flash: Sequence[FlashScore]
    measures: Measures | None
    kept: float | None
    routed: Sequence[str]
    funnel: Sequence[tuple[str, int, str]]
    lineage: Sequence[charts.LineageNode]
    examples: Sequence[Example]
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)


def _score_charts(summary: Summary, *, last: bool) -> list[tuple[str, Markup]]:
    """(stage, picture) of every stage that scored held-out rows, or of the last one alone."""
    scored = [stage for stage in summary.stages if stage.heldout]
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
        for stage in (scored[-1:] if last else scored)
    ]


def _together(training: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, list[Markup]]]:
    """The same, with stages that have one picture beside those of that kind before them."""
    rows: list[tuple[str, list[Markup]]] = []
    alone = False
    for name, pictures in training:
        marked = [Markup(picture) for picture in pictures]
        if alone and len(marked) == 1:
            rows[-1] = (f"{rows[-1][0]}, {name}", [*rows[-1][1], *marked])
        else:
            rows.append((name, marked))
        alone = len(marked) == 1
    return rows


def render(report: Report) -> str:
    """The page as text."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        profile=report.profile,
        summary=report.summary,
        scores=_score_charts(report.summary, last=bool(report.trends)),
        trends=[(trend, Markup(curves.scores_over_stages(trend))) for trend in report.trends],
        flash=report.flash,
        measures=report.measures,
        kept=report.kept,
        routed=[Markup(figure) for figure in report.routed],
        training=_together(report.training),
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
