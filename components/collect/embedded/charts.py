"""Bar and line charts of real tables, and questions about a value, the maximum, a difference, a trend."""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from components.collect.embedded.chart_drawing import axis_end, draw_chart
from components.collect.embedded.config import ChartsConfig, EmbeddedConfig, Table
from components.collect.embedded.sample import Maker, Sample, between, pick, png_media
from components.collect.embedded.tables import LICENSE, SOURCE, Series, rounded, table_series, written
from model.data.schema import scorer

# Shares of the axis: what is closer together, or smaller, cannot be told from a picture without numbers.
_APART = 0.05
_READABLE = 0.25


@dataclass(frozen=True)
class Chart:
    """What is drawn: marks of one series, as bars across, columns or a line."""

    series: Series
    labels: tuple[str, ...]
    values: tuple[float, ...]
    kind: str
    labelled: bool


def make_charts(config: ChartsConfig, corpus: EmbeddedConfig, *, heldout: bool) -> Maker:
    """Tasks ``chart_value``, ``chart_maximum``, ``chart_difference``, ``chart_trend``; whole tables are held out."""
    tables: list[Table] = [name for name in get_args(Table) if (name in config.heldout_tables) == heldout]

    def make(task: str, rng: np.random.Generator) -> Sample | None:
        everything = table_series(pick(rng, tables))  # type: ignore[arg-type]
        series = everything[int(rng.integers(len(everything)))]
        chart = draw_marks(series, config, rng)
        exchange = ask(task, chart, rng)
        if exchange is None:
            return None
        question, answer = exchange
        numeric = task in ("chart_value", "chart_difference")
        image = draw_chart(series.title, chart.labels, chart.values, chart.kind, chart.labelled, config.size, rng)
        judge = scorer("relaxed", tolerance=0.05) if numeric else scorer("exact")
        return Sample(question, answer, judge, f"{SOURCE} {series.table}", LICENSE, (png_media(image),))

    return make


def draw_marks(series: Series, config: ChartsConfig, rng: np.random.Generator) -> Chart:
    """Some marks of a series: neighbours where they are ordered, else any."""
    count = min(between(rng, config.marks), len(series.labels))
    if series.ordered:
        first = int(rng.integers(len(series.labels) - count + 1))
        chosen = list(range(first, first + count))
    else:
        chosen = rng.choice(len(series.labels), size=count, replace=False).tolist()
    labels, values = tuple(series.labels[i] for i in chosen), tuple(series.values[i] for i in chosen)
    kind = pick(rng, ("columns", "line")) if series.ordered else "bars"
    return Chart(series, labels, values, kind, bool(rng.random() < config.labelled_share))


def ask(task: str, chart: Chart, rng: np.random.Generator) -> tuple[str, str] | None:
    """A question about the chart and its answer; None when the chart has no clear one."""
    labels, values, end = chart.labels, chart.values, axis_end(chart.values)
    readable = [index for index, value in enumerate(values) if chart.labelled or value >= _READABLE * end]
    if task == "chart_value":
        if not readable:
            return None
        index = readable[int(rng.integers(len(readable)))]
        return f"What is the value of {labels[index]}?", written(values[index])
    if task == "chart_maximum":
        ranked = sorted(values, reverse=True)
        if ranked[0] - ranked[1] < _APART * end:
            return None
        return "Which has the largest value?", labels[values.index(ranked[0])]
    first, second = sorted(rng.choice(len(values), size=2, replace=False).tolist())
    if task == "chart_trend":
        if not chart.series.ordered or abs(values[first] - values[second]) < _APART * end:
            return None
        answer = "rises" if values[second] > values[first] else "falls"
        return f"From {labels[first]} to {labels[second]}: rises or falls?", answer
    if values[first] < values[second]:
        first, second = second, first
    difference = rounded(values[first] - values[second])
    if difference < (_APART if chart.labelled else _READABLE) * end:
        return None
    return f"By how much is {labels[first]} above {labels[second]}?", written(difference)
