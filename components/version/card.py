"""The card of a dataset: counts, licences, sources, funnel, examples and hashes, as Markdown and as HTML.

A function of the dataset's bytes alone: no time, no place and no remote enter it.
"""

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from model.data.schema import Row
from model.data.shards import Dataset
from model.data.summary import Summary, sample_rows, summarise
from model.data.thumbnails import Thumbnail, thumbnail

_SIDE = 112  # pixels of a thumbnail
_MOST_VALUES = 20
_LONGEST = 280
_STYLE = """
body{margin:0;background:#f6f8fa;color:#1f2933;font:15px/1.5 system-ui,sans-serif}
main{max-width:880px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:28px 0 8px}
table{border-collapse:collapse;background:#fff;border:1px solid #e1e7ec;font-size:14px;max-width:100%}
td,th{padding:5px 12px;border-bottom:1px solid #e1e7ec;text-align:left;vertical-align:top}
td{overflow-wrap:break-word;max-width:420px}
th{color:#5b6b7b}td.number{text-align:right;font-variant-numeric:tabular-nums}
img{image-rendering:pixelated;max-width:336px;background:#10161d}.scroll{overflow-x:auto}
"""


class Card(NamedTuple):
    """One card in two languages."""

    markdown: str
    html: str


@dataclass(frozen=True)
class _Table:
    """A table of a card. A cell is text, a number, or pictures."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def make_card(dataset: Dataset, name: str, examples: int) -> Card:
    """Describe a dataset.

    Args:
        dataset: what to describe.
        name: title.
        examples: rows to show at most, the tasks in turn.

    Raises:
        InputError: a shard is corrupt.
    """
    summary = summarise(dataset)
    lead = f"{summary.rows:,} rows, {summary.rejects:,} rejects, {_size(summary.media_bytes)} of media in the rows."
    tables = [
        *(_share_table(column.capitalize(), values, summary.rows) for column, values in summary.shares.items()),
        *_media_tables(summary),
        *_funnel_tables(dataset.manifest.get("funnel")),
        *_reject_table(summary),
        _Table("Examples", ("picture", "task", "conversation", "answers"), _examples(sample_rows(dataset, examples))),
        _hashes(dataset),
    ]
    tables = [table for table in tables if table.rows]
    return Card(_markdown(name, lead, tables), _html(name, lead, tables))


def _share_table(title: str, values: Counter[Any], total: int) -> _Table:
    ordered = sorted(values.items(), key=lambda item: (-item[1], str(item[0])))
    shown, rest = ordered[:_MOST_VALUES], ordered[_MOST_VALUES:]
    if rest:
        shown.append((f"{len(rest)} others", sum(count for _, count in rest)))
    rows = [(str(value), count, f"{count / max(total, 1):.1%}") for value, count in shown if count]
    return _Table(title, (title.lower(), "count", "share"), rows)


def _media_tables(summary: Summary) -> list[_Table]:
    total = sum(count for kind, count in summary.kinds.items() if kind != "none")
    sides = Counter({_range(side): count for side, count in summary.sides.items()})
    ordered = [
        (_range(side), sides[_range(side)], f"{sides[_range(side)] / total:.1%}") for side in sorted(summary.sides)
    ]
    sizes = [
        ("bytes in the rows", summary.media_bytes),
        ("bytes of the largest", summary.largest_medium),
        ("media at a uri", summary.elsewhere),
        ("rows without media", summary.kinds["none"]),
        ("characters of text", summary.text),
    ]
    return [
        _share_table("Format", summary.formats, total),
        _Table("Longer side", ("pixels", "media", "share"), ordered),
        _Table("Sizes", ("what", "count"), sizes),
    ]


def _range(side: int) -> str:
    return f"{side} to {2 * side - 1}" if side else "unknown"


def _funnel_tables(funnel: Any) -> list[_Table]:
    """The funnel that curation leaves in a manifest; another step's is no reason to fail."""
    if not isinstance(funnel, dict):
        return []
    steps = [step for step in funnel.get("operators", []) if isinstance(step, dict)]
    rows = [tuple(step.get(key, "") for key in ("op", "rows_in", "rejected", "rows_out")) for step in steps]
    totals = [(name, value) for name, value in sorted(funnel.items()) if isinstance(value, int)]
    out = funnel.get("rows_out")
    totals += [(f"rows_out: {name}", count) for name, count in sorted(out.items())] if isinstance(out, dict) else []
    return [
        _Table("Funnel", ("operator", "rows in", "rejected", "rows out"), rows),
        _Table("Funnel in all", ("what", "count"), totals),
    ]


def _reject_table(summary: Summary) -> list[_Table]:
    ordered = sorted(summary.reasons.items(), key=lambda item: (-item[1], item[0]))[:_MOST_VALUES]
    rows = [(step, reason, count) for (step, reason), count in ordered]
    return [_Table("Rejects", ("step", "reason", "count"), rows)]


def _examples(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    shown = []
    for row in rows:
        pictures = [thumbnail(medium, _SIDE) for medium in row["media"][:3]]
        said = " / ".join(f"{message['role']}: {message['content']}" for message in row["messages"])
        shown.append((pictures, row["task"], _short(said), _short(", ".join(row["answers"]))))
    return shown


def _hashes(dataset: Dataset) -> _Table:
    manifest = dataset.manifest
    entries = [*manifest["shards"], manifest["rejects_file"]]
    rows = [(entry["file"], entry["rows"], entry["sha256"]) for entry in entries]
    return _Table(
        "Hashes", ("file", "rows", "SHA-256"), [*rows, ("payload", manifest["rows"], manifest["payload_sha256"])]
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def _markdown(name: str, lead: str, tables: list[_Table]) -> str:
    lines = [f"# {name}", "", lead, ""]
    for table in tables:
        rule = "|".join("---" for _ in table.head)
        lines += [f"## {table.title}", "", f"| {' | '.join(table.head)} |", f"|{rule}|"]
        lines += [f"| {' | '.join(_markdown_cell(cell) for cell in row)} |" for row in table.rows]
        lines.append("")
    return "\n".join(lines)


def _markdown_cell(cell: Any) -> str:
    if isinstance(cell, list):
        return " ".join(f"![]({item.uri})" if item.uri else _markdown_cell(item.problem) for item in cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return re.sub(r"([\\`*_\[\]{}<>|#!~$&])", r"\\\1", _short(str(cell)))


def _html(name: str, lead: str, tables: list[_Table]) -> str:
    title = html.escape(name)
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><main>\n<h1>{title}</h1><p>{html.escape(lead)}</p>",
    ]
    for table in tables:
        parts.append(f'<h2>{html.escape(table.title)}</h2><div class="scroll"><table>')
        parts.append(f"<tr>{''.join(f'<th>{html.escape(head)}</th>' for head in table.head)}</tr>")
        parts += [f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in table.rows]
        parts.append("</table></div>")
    return "\n".join([*parts, "</main></body></html>"]) + "\n"


def _html_cell(cell: Any) -> str:
    if isinstance(cell, int):
        return f'<td class="number">{cell:,}</td>'
    if isinstance(cell, list):
        return f"<td>{' '.join(map(_picture, cell))}</td>"
    return f"<td>{html.escape(_short(str(cell)))}</td>"


def _picture(item: Thumbnail) -> str:
    if not item.uri:
        return html.escape(_short(item.problem))
    zoom = 2 if max(item.width, item.height) <= _SIDE // 2 else 1
    return f'<img src="{item.uri}" width="{item.width * zoom}" height="{item.height * zoom}" alt="">'
