"""``funnel.html``: the funnel, its rejects, statistics and drift as one page that refers to nothing outside itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined

from components.curate.funnel import Example
from components.curate.recipe import Operator

FUNNEL_FILE = "funnel.html"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Funnel: {{ name }}</title>
<style>
  body { margin:0; background:#f6f8fa; color:#1f2933; font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif }
  main { max-width:1040px; margin:0 auto; padding:20px 16px 56px }
  h1 { font-size:26px; margin:4px 0 } h2 { font-size:18px; margin:32px 0 8px } h3 { font-size:14px; margin:0 0 8px }
  p { margin:0 0 10px } .faint, th, figcaption span { color:#5b6b7a } .faint { font-size:14px }
  .card { background:#fff; border:1px solid #e1e7ec; border-radius:8px; padding:14px; margin-bottom:14px;
    overflow-x:auto }
  table { border-collapse:collapse; width:100%; font-size:14px; font-variant-numeric:tabular-nums }
  th, td { text-align:right; padding:5px 10px; border-bottom:1px solid #e1e7ec; font-weight:400; white-space:nowrap }
  th:first-child, td:first-child { text-align:left } tr:last-child td { border-bottom:0 } td.wide { width:45% }
  td.long { white-space:normal; overflow-wrap:anywhere; min-width:140px }
  .bar { background:#dbe7fb; height:14px; border-radius:3px; display:flex; min-width:120px }
  .bar i { background:#1f6feb; height:14px; border-radius:3px } .bar i.lost { background:#d9730d }
  .examples { display:grid; gap:10px; grid-template-columns:repeat(auto-fill,minmax(220px,1fr)) }
  figure { margin:0; border:1px solid #e1e7ec; border-radius:6px; padding:8px; font-size:13px; overflow-wrap:anywhere }
  figure img { max-width:144px; max-height:144px; min-width:56px; image-rendering:pixelated; vertical-align:top;
    background:#eef1f4; border:2px solid #d9730d; margin:0 4px 4px 0 } figure img.kept { border-color:#1a7f37 }
  figcaption b { display:block } figcaption span { display:block; white-space:pre-line; margin-top:4px }
</style>
</head>
<body>
<main>
<h1>{{ name }}: what curate kept, and why the rest is gone</h1>
<p class="faint">{{ "{:,}".format(funnel.rows_in) }} rows came in
{%- for output, rows in funnel.rows_out.items() %}, {{ "{:,}".format(rows) }} went to {{ output }}{% endfor %}
{%- if funnel.copied %} ({{ "{:,}".format(funnel.copied) }} of them copies){% endif %},
{{ "{:,}".format(funnel.rejected.values()|sum) }} were rejected.
Rows in{% if funnel.copied %} + copies{% endif %} = rows out + rejects.</p>

<h2>Operators</h2>
<div class="card"><table>
<tr><th>operator</th><th>rows in</th><th>rejected</th><th>rows out</th><th></th></tr>
{% for one in funnel.operators %}
<tr><td>{{ one.op }}</td><td>{{ "{:,}".format(one.rows_in) }}</td><td>{{ "{:,}".format(one.rejected) }}</td>
<td>{{ "{:,}".format(one.rows_out) }}</td><td class="wide"><div class="bar">
<i style="width:{{ share(one.rows_out) }}%"></i><i class="lost" style="width:{{ share(one.rejected) }}%"></i>
</div></td></tr>
{% endfor %}
</table></div>

{% if examples %}
<h2>Rejected, for example</h2>
<p class="faint">The first rows of each operator. Orange frames are rejected pictures, green ones the earlier row's.</p>
{% for op, settings, shown in examples %}
<div class="card"><h3>{{ op }} <span class="faint">{{ settings }}</span></h3><div class="examples">
{% for one in shown %}
<figure>{% for uri in one.pictures %}<img src="{{ uri }}" alt="rejected">{% endfor %}
{%- for uri in one.instead %}<img class="kept" src="{{ uri }}" alt="kept">{% endfor %}
<figcaption><b>{{ one.row_id }}</b>{{ one.reason }}<span>{{ one.text }}</span></figcaption></figure>
{% endfor %}
</div></div>
{% endfor %}
{% endif %}

{% if statistics %}
<h2>Length of rows, for packing</h2>
<p class="faint">Characters and words of all turns, image tiles. Bins are named by their upper end. Tokens are counted
where rows are packed: a dataset knows no tokenizer.</p>
{% for measure, found in statistics.items() %}
<div class="card"><h3>{{ measure }} <span class="faint">{{ "{:,}".format(found.total) }} in all</span></h3><table>
<tr><th>up to</th><th>rows</th><th></th></tr>
{% for edge, count in found.bins.items() %}
<tr><td>{{ edge }}</td><td>{{ "{:,}".format(count) }}</td><td class="wide"><div class="bar">
<i style="width:{{ "%.2f"|format(100 * count / ([1, found.bins.values()|sum]|max)) }}%"></i></div></td></tr>
{% endfor %}
</table></div>
{% endfor %}
{% endif %}

{% if drift %}
<h2>Drift against the previous version</h2>
<p class="faint">{{ "{:,}".format(drift.rows.previous) }} rows then, {{ "{:,}".format(drift.rows.new) }} now.
PSI = &Sigma; (p - q) ln(p / q) over the shares p now and q then, counts raised by 1/2; below 0.1 is little, above 0.25
much. KS is the largest distance of the two distribution functions.</p>
{% for column, found in drift.labels.items() %}
<div class="card"><h3>{{ column }} <span class="faint">PSI {{ "%.4f"|format(found.psi) }}</span></h3><table>
<tr><th>label</th><th>then</th><th>now</th><th>change</th></tr>
{% for one in found.shares %}
<tr><td class="long">{{ one.label }}</td><td>{{ "%.2f"|format(100 * one.previous) }} %</td>
<td>{{ "%.2f"|format(100 * one.new) }} %</td><td>{{ "%+.2f"|format(100 * (one.new - one.previous)) }}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
<div class="card"><table>
<tr><th>quantiles 5, 50, 95 %</th><th>then</th><th>now</th><th>KS</th></tr>
{% for measure, found in drift.numbers.items() %}
<tr><td>{{ measure }}</td><td>{{ quantiles(found.previous) }}</td><td>{{ quantiles(found.new) }}</td>
<td>{{ "%.4f"|format(found.ks) }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
</main>
</body>
</html>
"""


def render_funnel(
    name: str,
    recipe: Sequence[Operator],
    funnel: Mapping[str, Any],
    examples: Mapping[int, Sequence[Example]],
    statistics: Mapping[str, Any] | None = None,
    drift: Mapping[str, Any] | None = None,
) -> bytes:
    """The page of one output. Everything that comes from rows is escaped; the same rows give the same bytes.

    Args:
        name: of the output.
        recipe: the operators that ran.
        funnel: see components.curate.funnel.count_rows.
        examples: rejects to show, by number of the operator.
        statistics: see components.curate.funnel.packing_statistics; None where the recipe gathers none.
        drift: see components.curate.drift.drift; None without a previous version.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = [(recipe[number].op, _settings(recipe[number]), examples[number]) for number in sorted(examples)]
    whole = max(1, funnel["rows_in"])
    page = environment.from_string(_PAGE).render(
        name=name,
        funnel=funnel,
        examples=shown,
        statistics=statistics,
        drift=drift,
        share=lambda rows: f"{100 * rows / whole:.2f}",
        quantiles=lambda found: " / ".join(f"{value:,.0f}" for value in found.values()) or "none",
    )
    return page.encode()


def _settings(section: Operator) -> str:
    """The thresholds of an operator in a line."""
    settings = section.model_dump(mode="json", exclude={"op"})
    text = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in ([], {}, None))
    return text if len(text) <= 200 else f"{text[:197]}..."
