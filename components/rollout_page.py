"""Statistics of rollouts as one page that refers to nothing outside itself. Imports no torch.

The same numbers give the same bytes; everything that comes from rows is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, StrictUndefined

from model.data.schema import Row
from model.data.thumbnails import thumbnail

_SIDE, _PICTURES, _SIGNS = 160, 4, 600

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ page.title }}</title>
<style>
  body { margin:0; background:#f6f8fa; color:#1f2933; font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif }
  main { max-width:1040px; margin:0 auto; padding:20px 16px 56px }
  h1 { font-size:26px; margin:4px 0 } h2 { font-size:18px; margin:32px 0 8px }
  p { margin:0 0 10px } .faint, th { color:#5b6b7a } .faint { font-size:14px }
  .card { background:#fff; border:1px solid #e1e7ec; border-radius:8px; padding:14px; margin-bottom:14px;
    overflow-x:auto }
  table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums }
  th, td { text-align:right; padding:4px 10px; border-bottom:1px solid #e1e7ec; font-weight:400; white-space:nowrap }
  th:first-child, td:first-child { text-align:left } tr:last-child td { border-bottom:0 } td.wide { width:60% }
  .bar { background:#eef1f4; height:14px; border-radius:3px; min-width:120px }
  .bar i { display:block; background:#1f6feb; height:14px; border-radius:3px }
  .examples { display:grid; gap:10px; grid-template-columns:repeat(auto-fill,minmax(300px,1fr)) }
  figure { margin:0; border:1px solid #e1e7ec; border-radius:6px; padding:10px; font-size:13px; background:#fff;
    overflow-wrap:anywhere } figure img { max-width:160px; min-width:56px; image-rendering:pixelated;
    background:#eef1f4; margin:0 4px 4px 0 }
  figure p { white-space:pre-line; margin:6px 0 } .good, .bad { border-left:3px solid; padding-left:8px }
  .good { border-color:#1a7f37 } .bad { border-color:#d9730d }
</style>
</head>
<body>
<main>
<h1>{{ page.title }}</h1>
{% for line in page.summary %}<p class="faint">{{ line }}</p>
{% endfor %}
{% for one in page.histograms %}
<h2>{{ one.title }}</h2>
<p class="faint">{{ one.note }}</p>
<div class="card"><table>
{% for label, count in one.bins.items() %}
<tr><td>{{ label }}</td><td>{{ "{:,}".format(count) }}</td><td class="wide"><div class="bar">
<i style="width:{{ "%.2f"|format(100 * count / ([1, one.bins.values()|max]|max)) }}%"></i></div></td></tr>
{% endfor %}
</table></div>
{% endfor %}
{% if page.families %}
<h2>By family</h2>
<div class="card"><table>
<tr><th>family</th>{% for name in page.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for family, cells in page.families.items() %}
<tr><td>{{ family }}</td>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% if page.examples %}
<h2>Examples</h2>
<div class="examples">
{% for one in page.examples %}
<figure>{% for uri in one.pictures %}<img src="{{ uri }}" alt="{{ one.row_id }}">{% endfor %}
<p class="faint">{{ one.row_id }} &middot; {{ one.note }}</p><p>{{ one.question }}</p>
{% for label, good, text in one.texts %}
<p class="{{ "good" if good else "bad" }}"><span class="faint">{{ label }}</span>
{{ text }}</p>
{% endfor %}</figure>
{% endfor %}
</div>
{% endif %}
</main>
</body>
</html>
"""


@dataclass(frozen=True)
class Histogram:
    """Counts by the label of a bin, in order."""

    title: str
    note: str
    bins: Mapping[str, int]


@dataclass(frozen=True)
class Example:
    """A query with some of its answers: (label, whether it is a good one, text)."""

    row_id: str
    note: str
    question: str
    pictures: Sequence[str]
    texts: Sequence[tuple[str, bool, str]]


@dataclass
class Page:
    """What a page shows; ``families`` has a cell for every one of ``columns``."""

    title: str
    summary: Sequence[str]
    histograms: Sequence[Histogram] = ()
    columns: Sequence[str] = ()
    families: Mapping[str, Sequence[str]] = field(default_factory=dict)
    examples: Sequence[Example] = ()

    def render(self) -> bytes:
        """The page."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(_PAGE).render(page=self).encode()


def example(row: Row, note: str, texts: Sequence[tuple[str, bool, str]]) -> Example:
    """A row with small copies of its pictures, and its texts cut to a few lines."""
    question = "\n".join(turn["content"].strip() for turn in row["messages"][:-1] if turn["role"] == "user")
    shown = [found.uri for medium in row["media"][:_PICTURES] if (found := thumbnail(medium, _SIDE)).uri]
    return Example(row["id"], note, _cut(question), shown, [(label, good, _cut(text)) for label, good, text in texts])


def accuracy_bins(accuracies: Sequence[float]) -> dict[str, int]:
    """Counts of accuracies: exactly 0, exactly 1, and the tenths between them, named by their upper end."""
    bins = dict.fromkeys(["0 %", *(f"up to {10 * tenth} %" for tenth in range(1, 10)), "under 100 %", "100 %"], 0)
    names = list(bins)
    for accuracy in accuracies:
        # Shares of a few answers: 3/10 must not fall behind 0.3 for its last bit.
        place = 0 if accuracy <= 0 else 11 if accuracy >= 1 else min(10, -int(-(accuracy * 10 - 1e-9) // 1))
        bins[names[place]] += 1
    return bins


def doubling_bins(values: Sequence[int]) -> dict[str, int]:
    """Counts of positive numbers in bins named by their upper ends 1, 2, 4, ...: from the first to the last filled."""
    counts: dict[int, int] = {}
    for value in values:
        edge = max(0, value - 1).bit_length()
        counts[edge] = counts.get(edge, 0) + 1
    if not counts:
        return {}
    return {f"up to {1 << edge:,}": counts.get(edge, 0) for edge in range(min(counts), max(counts) + 1)}


def _cut(text: str) -> str:
    return text if len(text) <= _SIGNS else f"{text[: _SIGNS - 3]}..."
