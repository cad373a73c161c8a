"""The page of a sensitivity scan: one HTML file that needs no network."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lightning_compress.core.files import write_json
from lightning_compress.run.sensitivity import FILE
from lightning_compress.sweep.page_template import CLOSING, OPENING

#: What stands under each axis of a scan, and its title.
TITLES = {
    "unstructured": ("share of the layer's weights that are zero", "Single weights pruned"),
    "channel": ("share of the channels that are gone", "Channels pruned"),
    "bits": ("bits of the layer's weights", "Fewer bits"),
    "rank": ("share of the full rank", "Low rank"),
}
_FALLING = ("bits", "rank")

_PAGE = """\
<header>
<h1>{{ title }}</h1>
<p class="soft">One layer at a time is changed, the others stay whole; without training after it. Accuracy is that of
{{ "the validation split" if batches is none else "the first %s batches of the validation split" | format(batches) }},
{{ "%.2f" | format(100 * base) }} % for the whole network (dotted).</p>
</header>
{% for axis in axes %}
<section><h2>{{ axis.title }}</h2><div id="{{ axis.name }}"></div>
<details><summary>Table<span>validation accuracy, %</span></summary><div class="scroll"><table>
<thead><tr><th>layer</th>{% for head in axis.heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for layer, cells in axis.rows %}<tr><td>{{ layer }}</td>
{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div></details></section>
{% endfor %}
{% if left_out %}<section><h2>Left out</h2><dl>
{% for axis, why in left_out.items() %}<dt>{{ axis }}</dt><dd>{{ why }}</dd>{% endfor %}
</dl></section>{% endif %}
"""


def write(scan: Mapping[str, Any], folder: Path) -> Path:
    """Write the page of a scan, as `run/sensitivity.py` gives it, and its numbers beside it; the page's file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, scan)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    axes = [
        {"name": name, "title": TITLES[name][1], **dict(zip(("heads", "rows"), table(layers), strict=True))}
        for name, layers in scan["scans"].items()
    ]
    figures = [f'"{name}": {figure(scan, name).to_json()}' for name in scan["scans"]]
    page = environment.from_string(OPENING + _PAGE + CLOSING).render(
        title=f"{scan['name']}: what each layer can lose",
        batches=scan["batches"],
        base=scan["base"]["accuracy"],
        axes=axes,
        left_out=scan["left_out"],
        figures=Markup(f"{{{', '.join(figures)}}}"),
        script=Markup(get_plotlyjs()),
    )
    file = folder / "sensitivity.html"
    file.write_text(page, encoding="utf-8")
    return file


def table(layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Heads and rows of one axis of a scan as text: accuracy in percent, by layer.

    >>> table({"fc": [{"amount": 0.5, "accuracy": 0.875}]})
    (['0.5'], [('fc', ['87.50'])])
    """
    first = next(iter(layers.values()))
    falling = _place(first[0]) > _place(first[-1])
    places = sorted({_place(row) for rows in layers.values() for row in rows}, reverse=falling)
    cells = {layer: {_place(row): f"{100 * row['accuracy']:.2f}" for row in rows} for layer, rows in layers.items()}
    return [f"{place:g}" for place in places], [
        (layer, [own.get(at, "") for at in places]) for layer, own in cells.items()
    ]


def figure(scan: Mapping[str, Any], axis: str) -> go.Figure:
    """A line for each layer: accuracy over how much of it is gone, milder to the left."""
    made = go.Figure()
    for layer, rows in scan["scans"][axis].items():
        name = html.escape(layer)
        made.add_trace(
            go.Scatter(
                x=[_place(row) for row in rows],
                y=[row["accuracy"] for row in rows],
                mode="lines+markers",
                name=name,
                text=[f"{name}: {row['amount']}" for row in rows],
                hovertemplate="%{text}, accuracy %{y:.2%}<extra></extra>",
            )
        )
    made.add_hline(y=scan["base"]["accuracy"], line={"dash": "dot", "color": "#616e7c", "width": 1})
    made.update_xaxes(title=TITLES[axis][0], gridcolor="#e8ecf0", zeroline=False)
    if axis in _FALLING:
        made.update_xaxes(autorange="reversed")
    made.update_yaxes(title="validation accuracy", tickformat=".3~%", gridcolor="#e8ecf0", zeroline=False)
    return made.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"},
        margin={"l": 64, "r": 16, "t": 34, "b": 60},
        colorway=["#2563eb", "#d64545", "#0f9d58", "#b44d12", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#616e7c"],
        height=420,
    )


def _place(row: Mapping[str, Any]) -> float:
    return float(row.get("share", row["amount"]))
