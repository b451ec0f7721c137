"""``fovea data look``: a dataset as one HTML page with filters, which needs no network and no server."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.data.errors import InputError

if TYPE_CHECKING:
    from model.data.schema import Media, Row
    from model.data.shards import Dataset

_SIDE = 160  # pixels of a thumbnail
_MEDIA_PER_ROW = 4
_PICTURE_BYTES = 16 << 20  # of all thumbnails of a page
_TEXT = 2000  # characters of one text
_VALUES = 30
_REJECTS = 500
_MORE_COLUMNS = ("chosen", "rejected", "steps", "words")


def look(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default: out/look/NAME.html.")] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, max=2000, help="Rows to show at most, the tasks in turn.")
    ] = 400,
) -> None:
    """Write one HTML page to look at a dataset in: counts, rows with pictures, rejects, filters and search.

    Example: `fovea data look out/line/curate/questions --out questions.html`
    """
    from components.settings import Settings
    from model.data.artifact import write_atomic
    from model.data.shards import open_dataset

    opened = open_dataset(dataset)  # its files are complete; `fovea data check` reads every byte
    target = out or Settings.from_environment().out / "look" / f"{dataset.absolute().name}.html"
    if target.is_dir():
        raise InputError(f"{target}: is a directory; name a file")
    page = render(opened, dataset.absolute().name, rows).encode()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, page)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"{target}: {error.strerror}") from None
    print(f"{target}: {len(page) / 1e6:.1f} MB; open it in a browser")


def render(dataset: "Dataset", name: str, most: int) -> str:
    """The page as text: a function of the dataset's bytes, ``name`` and ``most``.

    Raises:
        InputError: a shard is corrupt.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    data = _page_data(dataset, most)
    # "<" would let a row's text close the element; JSON can write it otherwise.
    text = json.dumps(data, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template("look.html").render(name=name, data=Markup(text), **_totals(dataset, data))


def _page_data(dataset: "Dataset", most: int) -> dict[str, Any]:
    """Rows and rejects as the page's script reads them; their number and size are bounded."""
    from model.data.summary import sample_rejects, sample_rows

    left = _PICTURE_BYTES
    shown = []
    for row in sample_rows(dataset, most):
        pictures = [_picture(medium, left) for medium in row["media"][:_MEDIA_PER_ROW]]
        left -= sum(len(picture.get("uri", "")) for picture in pictures)
        shown.append(_row(row, pictures))
    rejects = sample_rejects(dataset, _REJECTS)
    return {"rows": shown, "rejects": [{key: value[:_TEXT] for key, value in reject.items()} for reject in rejects]}


def _row(row: "Row", pictures: list[dict[str, Any]]) -> dict[str, Any]:
    more = {name: row[name] for name in _MORE_COLUMNS if row.get(name) is not None}
    return {
        **{name: row[name][:_TEXT] for name in ("id", "task", "source", "license")},
        "media": pictures,
        "hidden": max(0, len(row["media"]) - _MEDIA_PER_ROW),
        "messages": [{"role": m["role"], "text": _short(m["content"])} for m in row["messages"]],
        "answers": [_short(answer) for answer in row["answers"][:20]],
        "scorer": _short(f"{row['scorer']['name']} {row['scorer']['parameters']}"),
        "more": {
            name: _short(v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)) for name, v in more.items()
        },
    }


def _picture(medium: "Media", left: int) -> dict[str, Any]:
    from model.data.thumbnails import thumbnail

    size = f"{medium['width']} x {medium['height']}" if medium["width"] else "size unknown"
    caption = " ".join([medium["format"] or medium["kind"], size])
    if left <= 0:
        return {"caption": caption, "problem": "not shown: the page is full"}
    small = thumbnail(medium, _SIDE)
    if small.problem:
        return {"caption": caption, "problem": _short(small.problem)}
    return {"caption": caption, "uri": small.uri, "width": small.width, "height": small.height}


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} ... ({len(text):,} characters)"


def _totals(dataset: "Dataset", data: dict[str, Any]) -> dict[str, Any]:
    """The tables above the rows."""
    from model.data.summary import summarise

    summary = summarise(dataset)
    reasons = Counter({f"{step}: {reason}": count for (step, reason), count in summary.reasons.items()})
    return {
        "summary": summary,
        "shown": len(data["rows"]),
        "shown_rejects": len(data["rejects"]),
        "shares": {name: _bars(values, summary.rows) for name, values in summary.shares.items()},
        "reasons": _bars(reasons, summary.rejects),
        "funnel": _funnel(dataset.manifest.get("funnel")),
        "media_count": sum(count for kind, count in summary.kinds.items() if kind != "none"),
        "payload": dataset.manifest["payload_sha256"],
    }


def _funnel(funnel: Any) -> list[tuple[str, int, float]]:
    """(operator, rows left, percent), as ``curate`` counts them; empty where the manifest has no such funnel."""
    try:
        total = max(int(funnel["rows_in"]), 1)
        steps = [(str(step["op"]), int(step["rows_out"])) for step in funnel["operators"]]
    except (KeyError, TypeError, ValueError):
        return []
    return [(name, count, min(100.0, 100 * count / total)) for name, count in steps]


def _bars(values: Counter[str], total: int) -> list[tuple[str, int, float]]:
    """(value, count, percent), the most frequent first; what is beyond the bound is added up."""
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = ordered[:_VALUES], ordered[_VALUES:]
    if rest:
        shown.append((f"({len(rest)} others)", sum(count for _, count in rest)))
    return [(value[:_TEXT], count, 100 * count / max(total, 1)) for value, count in shown]
