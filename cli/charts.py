"""The report's pictures as SVG text: loss curves, scores with intervals, the funnel, the lineage graph.

Every function is pure: numbers in, one self-contained ``<svg>`` element out. Sizes are in user units; the page
scales the picture to its column.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

INK, FAINT, RULE = "#1f2933", "#66788a", "#e1e7ec"
BLUE, ORANGE, GREY, PALE = "#1f6feb", "#d9730d", "#9aa8b5", "#dbe9ff"


@dataclass(frozen=True)
class ScoreBar:
    """One family's score in [0, 1], its interval, and the baselines it must beat."""

    family: str
    score: float
    low: float
    high: float
    constant: float
    swapped: float | None


@dataclass(frozen=True)
class LineageNode:
    """One step of the line: ``outputs`` are (name, short hash), ``parents`` are the steps it reads from."""

    step: str
    detail: str
    outputs: Sequence[tuple[str, str]]
    parents: Sequence[str]


def text(
    x: float, y: float, content: str, *, anchor: str = "start", fill: str = INK, size: int = 13, weight: int = 400
) -> str:
    """A ``<text>`` element; the text is escaped."""
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(content)}</text>'


def svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """The picture: ``width`` x ``height`` user units, with ``label`` for those who do not see it."""
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}"'
    return f'{head} xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; where these are fewer than three, all multiples."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), range(1, 10), [tenth / 10 for tenth in range(10, 100)]):
        ticks = [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, len(ticks) // 6)]


def loss_curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """Training loss over optimiser steps, on a logarithmic axis; ``points`` are (step, loss), losses positive."""
    width, height, left, right, top, bottom = 380, 220, 46, 12, 34, 28
    finite = [(s, v) for s, v in points if math.isfinite(v) and v > 0]
    parts = [text(left, 18, title, weight=600, size=14)]
    if not finite:
        parts.append(text(left, height / 2, "no loss was logged", fill=FAINT))
        return svg(width, height, title, parts)
    steps, losses = [s for s, _ in finite], [v for _, v in finite]
    low, high = min(losses) / 1.15, max(losses) * 1.15
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def place(step: float, loss: float) -> tuple[float, float]:
        across = (step - first) / (last - first)
        up = math.log(loss / low) / math.log(high / low)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    for tick in _log_ticks(low, high):
        y = place(first, tick)[1]
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{RULE}"/>')
        parts.append(text(left - 6, y + 4, f"{tick:g}", anchor="end", fill=FAINT, size=11))
    for step in (first, (first + last) / 2, last):
        x = place(step, low)[0]
        anchor = "end" if step == last else "middle" if step != first else "start"
        parts.append(text(x, height - 10, f"{step:.0f}", anchor=anchor, fill=FAINT, size=11))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(s, v) for s, v in finite))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="2" stroke-linejoin="round"/>')
    x, y = place(*finite[-1])
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{BLUE}"/>')
    parts.append(text(width - right, 18, f"ends at {losses[-1]:.3g}", anchor="end", fill=BLUE, size=12, weight=600))
    return svg(width, height, f"{title}: training loss over steps, ending at {losses[-1]:.3g}", parts)


def score_bars(bars: Sequence[ScoreBar]) -> str:
    """Score per family with its interval as a whisker; a tick marks the constant answer, a ring swapped images."""
    width, left, right, row, top = 460, 92, 50, 40, 10
    height = top + row * len(bars) + 26
    span = width - left - right
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * span
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 24}" stroke="{RULE}"/>')
        parts.append(text(x, height - 8, f"{tick:g}", anchor="middle", fill=FAINT, size=11))
    for index, bar in enumerate(bars):
        y = top + index * row + row / 2
        parts.append(text(left - 10, y + 4, bar.family, anchor="end"))
        length, low, high = bar.score * span, left + bar.low * span, left + bar.high * span
        parts.append(f'<rect x="{left}" y="{y - 9}" width="{length:.1f}" height="18" rx="3" fill="{BLUE}"/>')
        whisker = f"M{low:.1f} {y - 5}v10M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 5}v10"
        parts.append(f'<path d="{whisker}" stroke="{INK}" fill="none"/>')
        constant = left + bar.constant * span
        parts.append(f'<path d="M{constant:.1f} {y - 14}v28" stroke="{ORANGE}" stroke-width="3"/>')
        if bar.swapped is not None:
            swapped = left + bar.swapped * span
            parts.append(
                f'<circle cx="{swapped:.1f}" cy="{y:.1f}" r="5" fill="#fff" stroke="{INK}" stroke-width="1.5"/>'
            )
        parts.append(text(left + span + 10, y + 4, f"{bar.score:.2f}", weight=600))
    return svg(width, height, "held-out score per task family", parts)


def funnel(levels: Sequence[tuple[str, int, str]]) -> str:
    """Rows that remain after each operator; ``levels`` are (name, rows, note), the widest first."""
    width, left, right, row = 460, 150, 62, 32
    height = row * len(levels) + 6
    most = max((rows for _, rows, _ in levels), default=1) or 1
    parts = []
    for index, (name, rows, note) in enumerate(levels):
        y, extent = index * row + 4, rows / most * (width - left - right)
        parts.append(text(left - 10, y + 17, name, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y + 2}" width="{extent:.1f}" height="22" rx="3" fill="{PALE}"/>')
        parts.append(text(left + 8, y + 18, note, fill=FAINT, size=12))
        parts.append(text(width, y + 18, f"{rows:,}", anchor="end", weight=600))
    return svg(width, height, "rows that remain after each operator of curation", parts)


def lineage_graph(nodes: Sequence[LineageNode]) -> str:
    """The line from top to bottom; an arc on the left for every edge that skips a step."""
    width, left, box = 460, 74, 386
    tops: dict[str, float] = {}
    heights: dict[str, float] = {}
    y = 4.0
    for node in nodes:
        tops[node.step], heights[node.step] = y, 46 + 18 * len(node.outputs)
        y += heights[node.step] + 16
    order = {node.step: index for index, node in enumerate(nodes)}
    parts, boxes = [], []
    for node in nodes:
        top = tops[node.step]
        for parent in node.parents:
            start = tops[parent] + heights[parent]
            if order[node.step] - order[parent] == 1:
                parts.append(f'<path d="M{left + 24} {start}v16" stroke="{GREY}" stroke-width="1.5"/>')
            else:
                bow = 10 + 9 * (order[node.step] - order[parent])
                parts.append(
                    f'<path d="M{left} {start - 14}C{left - bow} {start - 6},{left - bow} {top + 8},{left} {top + 16}" '
                    f'stroke="{GREY}" stroke-width="1.5" fill="none"/>'
                )
        frame = f'x="{left}" y="{top}" width="{box - 2}" height="{heights[node.step]}" rx="6"'
        boxes.append(f'<rect {frame} fill="#fff" stroke="{GREY}"/>')
        boxes.append(text(left + 12, top + 20, node.step, weight=600, size=14))
        boxes.append(text(left + 12, top + 37, node.detail, fill=FAINT, size=11))
        for line, (name, digest) in enumerate(node.outputs):
            base = top + 55 + 18 * line
            boxes.append(text(left + 12, base, name, size=12))
            boxes.append(text(left + box - 14, base, digest, anchor="end", fill=FAINT, size=12))
    return svg(width, y, "lineage: steps, what each made, and what it was made from", parts + boxes)
