"""Pictures of how a stage trained, as SVG text: lines over steps, in one frame or in many small ones, a histogram over
steps, scores over stages.

Every function is pure, as those of ``cli/charts.py``: numbers in, one self-contained ``<svg>`` element out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cli.charts import BLUE, FAINT, INK, ORANGE, RULE, svg, text

COLOURS = (BLUE, ORANGE, "#1a7f37", "#8250df", "#bf3989", "#0a7c86", "#7d6608", "#57606a")
"""Of the lines of a picture, in their order; told apart with any kind of colour vision in the first four."""
_WIDTH, _LEFT, _RIGHT, _BOTTOM, _HEIGHT = 380, 46, 12, 28, 220
_NAMES, _FIRST_ROW, _ROW, _LONGEST_NAME, _SPARK_POINTS = 96, 52, 38, 14, 60
"""Of small curves: how wide the names are, where the first row begins, its height, letters, and points of a curve."""
_LEAST_FOR_A_MEAN = 12
"""With fewer points a curve is drawn as it is; with more, faintly, and its running mean over it."""


@dataclass(frozen=True)
class Line:
    """One curve: (step, value) in the order of the steps. Values that are not finite leave a gap."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class StageScore:
    """Score of one task family after one stage, with its 95 % interval."""

    stage: str
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend:
    """How one task family's score went from stage to stage, beside the best constant answer (None: not known)."""

    family: str
    scores: Sequence[StageScore]
    constant: float | None = None


def curves(title: str, lines: Sequence[Line], *, marks: Sequence[tuple[str, float]] = ()) -> str:
    """Lines over optimiser steps on one linear axis, which takes in the marks too.

    Args:
        title: what is drawn.
        lines: each with its name; a single one gets no legend when its name is the title's.
        marks: named values that are drawn across as dashed lines.
    """
    parts = [text(_LEFT, 18, title, weight=600, size=14)]
    drawn = [_Drawn.of(line) for line in lines if any(math.isfinite(v) for _, v in line.points)]
    if not drawn:
        parts.append(text(_LEFT, _HEIGHT / 2, "nothing was logged", fill=FAINT))
        return svg(_WIDTH, _HEIGHT, title, parts)
    values = [v for line in drawn for _, v in line.points] + [value for _, value in marks]
    steps = [s for line in drawn for s, _ in line.points]
    legend, top = _legend(drawn, title)
    axis = _Axis(min(steps), max(steps), *_margins(values), top)
    parts += [*legend, *axis.grid()]
    for name, value in marks:
        y = axis.y(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="{FAINT}" stroke-dasharray="4 4"/>')
        parts.append(text(_WIDTH - _RIGHT - 4, y - 4, name, anchor="end", fill=FAINT, size=11))
    for line, colour in zip(drawn, COLOURS, strict=False):
        parts += _curve(axis, line, colour)
    ends = ", ".join(f"{line.name} ends at {line.end:.3g}" for line in drawn)
    return svg(_WIDTH, _HEIGHT, f"{title}: {ends}", parts)


def shares_over_steps(
    title: str,
    labels: Sequence[str],
    columns: Sequence[tuple[float, Sequence[float]]],
    *,
    within: tuple[int, int] | None,
) -> str:
    """A histogram for each step, side by side: the darker, the larger the share.

    Args:
        title: what is drawn.
        labels: of the bins, from below.
        columns: (step, shares of the bins).
        within: first and last bin that lie inside of a bound; a frame is drawn around them. None where no bin does.
    """
    left, top = 84, 34
    height = top + 13 * len(labels) + 30
    parts = [text(left, 18, title, weight=600, size=14)]
    if not columns:
        parts.append(text(left, height / 2, "nothing was logged", fill=FAINT))
        return svg(_WIDTH, height, title, parts)
    wide = (_WIDTH - left - _RIGHT) / len(columns)
    for index, (_, shares) in enumerate(columns):
        for number, share in enumerate(shares):
            if share > 0:
                place = f'x="{left + index * wide:.2f}" y="{top + 13 * (len(labels) - 1 - number)}"'
                size = f'width="{wide + 0.3:.2f}" height="13"'
                parts.append(f'<rect {place} {size} fill="{BLUE}" fill-opacity="{math.sqrt(share):.3f}"/>')
    for number in range(1, len(labels), 2):
        y = top + 13 * (len(labels) - 1 - number) + 10
        parts.append(text(left - 6, y, labels[number], anchor="end", fill=FAINT, size=11))
    if within is not None:
        first, last = within
        frame = f'x="{left}" y="{top + 13 * (len(labels) - 1 - last)}" width="{_WIDTH - left - _RIGHT}"'
        size = f'height="{13 * (last - first + 1)}"'
        parts.append(f'<rect {frame} {size} fill="none" stroke="{ORANGE}" stroke-width="1.5"/>')
    for step, x, anchor in ((columns[0][0], left, "start"), (columns[-1][0], _WIDTH - _RIGHT, "end")):
        parts.append(text(x, height - 10, f"{step:.0f}", anchor=anchor, fill=FAINT, size=11))
    return svg(_WIDTH, height, f"{title}, over steps", parts)


def small_multiples(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Line]]]) -> str:
    """A small curve for each row and column, over it the value at its end.

    The curves of a column share one axis, whose range is written below them, so that rows can be compared.

    Args:
        title: what is drawn.
        columns: what each column shows.
        rows: the name of each, and a line for every column; one without points leaves its place empty.
    """
    wide, height = (_WIDTH - _RIGHT - _NAMES) / len(columns), _FIRST_ROW + _ROW * len(rows) + 24
    parts = [text(_RIGHT, 18, title, weight=600, size=14)]
    for number, name in enumerate(columns):
        x = _NAMES + number * wide
        parts.append(text(x, _FIRST_ROW - 12, name, fill=FAINT, size=11))
        parts += _small_curves(x, wide - 10, [_Drawn.of(lines[number]) for _, lines in rows])
    for number, (name, _) in enumerate(rows):
        said = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}\u2026"
        parts.append(text(_RIGHT, _FIRST_ROW + _ROW * number + 22, said, size=11))
    return svg(_WIDTH, height, f"{title}: {', '.join(columns)}", parts)


def _small_curves(left: float, wide: float, lines: Sequence["_Drawn"]) -> list[str]:
    """A column of small curves, one below the other."""
    points = [point for line in lines for point in line.smooth]
    if not points:
        return []
    first, last = min(step for step, _ in points), max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    across, up = wide / ((last - first) or 1), 16 / ((high - low) or 1)
    span = f"{_short(low)}\u2013{_short(high)}"
    parts = [text(left, _FIRST_ROW + _ROW * len(lines) + 16, span, fill=FAINT, size=10)]
    for number, line in enumerate(lines):
        if line.points:
            base = _FIRST_ROW + _ROW * number + 28
            places = [(left + (s - first) * across, base - (v - low) * up) for s, v in _thinned(line.smooth)]
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(text(left, base - 19, _short(line.end), size=11))
            parts.append(f'<path d="M{left:.1f} {base + 2}h{wide:.1f}" stroke="{RULE}"/>')
            parts.append(f'<polyline points="{way}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>')
            parts.append(f'<circle cx="{places[-1][0]:.1f}" cy="{places[-1][1]:.1f}" r="2" fill="{BLUE}"/>')
    return parts


def _short(value: float) -> str:
    """Two digits, or the whole number."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most some sixty of them, both ends among them."""
    step = max(1, len(points) // _SPARK_POINTS)
    return [*points[:-1:step], points[-1]]


def scores_over_stages(trend: Trend) -> str:
    """One family's held-out score after each stage, with its interval; a line across marks the best constant answer."""
    family, scores, constant = trend.family, trend.scores, trend.constant
    width, height, left, right, top, bottom = 340, 190, 34, 12, 36, 26
    low = min([s.low for s in scores] + ([] if constant is None else [constant]), default=0.0)
    floor, ceiling = math.floor(low * 5) / 5, 1.0
    if floor >= ceiling:
        floor = 0.8

    def y(value: float) -> float:
        return height - bottom - (value - floor) / (ceiling - floor) * (height - top - bottom)

    parts = [text(left, 18, family, weight=600, size=14)]
    ticks = round((ceiling - floor) / 0.2)
    for tick in (floor + 0.2 * number for number in range(ticks + 1)):
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{RULE}"/>')
        parts.append(text(left - 6, y(tick) + 4, f"{tick:.1f}", anchor="end", fill=FAINT, size=11))
    if constant is not None:
        parts.append(f'<path d="M{left} {y(constant):.1f}H{width - right}" stroke="{ORANGE}" stroke-width="2"/>')
    slot = (width - left - right) / max(1, len(scores))
    places = [(left + slot * (number + 0.5), score) for number, score in enumerate(scores)]
    way = " ".join(f"{x:.1f},{y(score.score):.1f}" for x, score in places)
    parts.append(f'<polyline points="{way}" fill="none" stroke="{BLUE}" stroke-width="1.5" opacity="0.5"/>')
    for x, score in places:
        parts.append(f'<path d="M{x:.1f} {y(score.low):.1f}V{y(score.high):.1f}" stroke="{INK}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y(score.score):.1f}" r="4.5" fill="{BLUE}"/>')
        parts.append(text(x, height - 8, score.stage, anchor="middle", fill=FAINT, size=11))
        parts.append(text(x + 7, y(score.score) - 5, f"{score.score:.2f}", size=11, weight=600))
    label = ", ".join(f"{score.score:.2f} after {score.stage}" for score in scores)
    return svg(width, height, f"held-out score of {family}: {label}", parts)


@dataclass(frozen=True)
class _Axis:
    """Where steps and values lie in a picture."""

    first: float
    last: float
    low: float
    high: float
    top: float

    def x(self, step: float) -> float:
        span = max(self.last - self.first, 1)
        return _LEFT + (step - self.first) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (_HEIGHT - self.top - _BOTTOM)

    def grid(self) -> list[str]:
        """Lines at round values, and the steps at both ends."""
        parts = []
        for tick in _round_ticks(self.low, self.high):
            y = self.y(tick)
            parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{RULE}"/>')
            parts.append(text(_LEFT - 6, y + 4, f"{tick:g}", anchor="end", fill=FAINT, size=11))
        parts.append(text(_LEFT, _HEIGHT - 10, f"{self.first:.0f}", fill=FAINT, size=11))
        parts.append(text(_WIDTH - _RIGHT, _HEIGHT - 10, f"{self.last:.0f}", anchor="end", fill=FAINT, size=11))
        return parts


def _margins(values: Sequence[float]) -> tuple[float, float]:
    """The range of an axis: that of the values, and a little more; something where they are all the same."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def _round_ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers in [low, high]."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


@dataclass(frozen=True)
class _Drawn:
    """A line's finite points, and what is drawn boldly: the same, or their running mean."""

    name: str
    points: Sequence[tuple[float, float]]
    smooth: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, line: Line) -> "_Drawn":
        points = [(step, value) for step, value in line.points if math.isfinite(value)]
        if len(points) < _LEAST_FOR_A_MEAN:
            return cls(line.name, points, points)
        reach, values = max(1, len(points) // 20), [value for _, value in points]
        windows = (values[max(0, index - reach) : index + reach + 1] for index in range(len(values)))
        means = [sum(window) / len(window) for window in windows]
        return cls(line.name, points, [(step, mean) for (step, _), mean in zip(points, means, strict=True)])

    @property
    def end(self) -> float:
        return self.smooth[-1][1]


def _curve(axis: _Axis, line: _Drawn, colour: str) -> list[str]:
    """A curve, and its end; a long one faintly, with its running mean over it."""
    parts = []
    if line.smooth is not line.points:
        parts.append(_polyline(axis, line.points, colour, width=1, opacity=0.3))
    parts.append(_polyline(axis, line.smooth, colour, width=2, opacity=1))
    step, value = line.smooth[-1]
    parts.append(f'<circle cx="{axis.x(step):.1f}" cy="{axis.y(value):.1f}" r="3.5" fill="{colour}"/>')
    return parts


def _polyline(axis: _Axis, points: Sequence[tuple[float, float]], colour: str, *, width: int, opacity: float) -> str:
    way = " ".join(f"{axis.x(s):.1f},{axis.y(v):.1f}" for s, v in points)
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"'
    return f'<polyline points="{way}" {style}/>'


def _legend(lines: Sequence[_Drawn], title: str) -> tuple[list[str], float]:
    """Names with the value at the end, in the colour of the curve, and where the curves may begin below them."""
    if len(lines) == 1 and lines[0].name == title:
        end = f"ends at {lines[0].end:.3g}"
        return [text(_WIDTH - _RIGHT, 18, end, anchor="end", fill=BLUE, size=12, weight=600)], 34
    parts, x, y = [], float(_LEFT), 38
    for line, colour in zip(lines, COLOURS, strict=False):
        said = f"{line.name} {line.end:.3g}"
        wide = 24 + 7 * len(said)
        if x > _LEFT and x + wide > _WIDTH:
            x, y = float(_LEFT), y + 15
        parts.append(f'<rect x="{x:.1f}" y="{y - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(text(x + 14, y, said, size=11))
        x += wide
    return parts, y + 14
