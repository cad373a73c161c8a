"""The page of a comparison: one HTML file that needs no network. Every value passes through Jinja's escaping."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lightning_compress.compare import differences, figures, fronts
from lightning_compress.compare.subject import Run, Study
from lightning_compress.core.files import write_text
from lightning_compress.sweep.page_template import CLOSING, OPENING

_PAGE = """\
<style>
.words th, .words td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem; }
</style>
{% macro rows(heads, lines) %}
<div class="scroll"><table class="words">
<thead><tr><th></th>{% for head in heads %}<th>{{ head.label }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, cells in lines %}<tr><td>{{ name }}</td>
{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
{% macro pair(titles) %}
<div class="pair">{% for id, title in titles %}<section><h2>{{ title }}</h2><div id="{{ id }}"></div></section>
{% endfor %}</div>
{% endmacro %}
<header>
<h1>{{ title }}</h1>
<p class="soft">Differences are to the first column.</p>
</header>

{% if studies %}
{{ pair(front_titles) }}
<section><h2>Studies</h2>
{% if apart %}<p class="tag">{{ apart }}</p>{% endif %}
{{ rows(studies, study_rows) }}
{% if front_titles %}<p class="soft">Latency is in times of each study's own dense reference; of a run, of its own dense
network.</p>{% endif %}
</section>
{% endif %}

{% if runs %}
<section><h2>Metrics and costs</h2>
{% if measured %}<p class="tag">Costs were measured differently, see {{ measured }} under Where they come from.</p>
{% endif %}
<div class="scroll"><table>
<thead><tr><th></th>{% for run in runs %}<th>{{ run.label }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, cells in numbers %}<tr><td>{{ name }}</td>
{% for cell, gap in cells %}<td>{{ cell }}{% if gap %} <span class="soft">({{ gap }})</span>{% endif %}</td>{% endfor %}
</tr>
{% endfor %}</tbody></table></div>
<p class="soft">Differences are subtractions for metrics and sparsity, percent of the first elsewhere.</p></section>
{{ pair(curve_titles) }}
{% if without_curves %}<p class="soft">Without curves: {{ without_curves }}.</p>{% endif %}
{% endif %}

{% for title, heads, lines in settings if heads | length > 1 %}
<section><h2>{{ title }}</h2>
{% if lines %}{{ rows(heads, lines) }}{% else %}<p>None.</p>{% endif %}
</section>
{% endfor %}

{% if layers %}
<section><h2>Layers</h2>
<div class="scroll"><table>
<thead><tr><th></th>{% for head in ("bits: weights / activations", "sparsity", "bytes") %}
<th colspan="{{ layered | length }}">{{ head }}</th>{% endfor %}</tr>
<tr><th></th>{% for _ in range(3) %}{% for run in layered %}<th>{{ run.label }}</th>{% endfor %}{% endfor %}
</tr></thead>
<tbody>{% for name, cells in layers %}<tr><td>{{ name }}</td>
{% for place in range(3) %}{% for cell in cells %}<td>{{ cell[place] }}</td>{% endfor %}{% endfor %}</tr>
{% endfor %}</tbody></table></div></section>
{% endif %}

<section><h2>Where they come from</h2>
{% if runs %}{{ rows(runs, origins) }}{% endif %}
<dl>{% for one in subjects %}<dt>{{ one.label }} at W&amp;B</dt>
<dd>{% if one.link %}<a href="{{ one.link }}">{{ one.link }}</a>{% else %}no address was recorded{% endif %}</dd>
{% endfor %}</dl>
</section>
"""
_TITLES = {
    "size": "Quality and size",
    "latency": "Quality and latency",
    "validation": "Validation curves",
    "training": "Training curves",
}


def write(subjects: Sequence[Run | Study], folder: Path) -> Path:
    """Write `index.html` into the folder; the file."""
    runs = [one for one in subjects if isinstance(one, Run)]
    studies = [one for one in subjects if isinstance(one, Study)]
    fields = _of_runs(runs) | _of_studies(studies)
    drawn = figures.curves(subjects) | (figures.fronts(subjects) if fields["front_titles"] else {})
    entries = [f'"{name}": {figure.to_json()}' for name, figure in drawn.items()]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(OPENING + _PAGE + CLOSING).render(
        title=" and ".join(one.label for one in subjects),
        subjects=subjects,
        curve_titles=[(name, _TITLES[name]) for name in drawn if name in ("validation", "training")],
        figures=Markup(f"{{{', '.join(entries)}}}"),
        script=Markup(get_plotlyjs()),
        settings=[
            (
                "Settings of runs that differ",
                runs,
                differences.differing([differences.settings(run.result) for run in runs]),
            ),
            (
                "Settings of studies that differ",
                studies,
                differences.differing([fronts.settings(study) for study in studies]),
            ),
        ],
        **fields,
    )
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _of_runs(runs: Sequence[Run]) -> dict[str, Any]:
    results = [run.result for run in runs]
    layered = [run for run in runs if run.result.layers]
    around = differences.differing([differences.surroundings(result) for result in results])
    origins = [differences.origin(result) for result in results]
    return {
        "runs": runs,
        "numbers": differences.side_by_side([differences.numbers(result) for result in results]) if runs else [],
        "measured": ", ".join(name for name, _ in around if name.startswith("measured.")),
        "without_curves": ", ".join(run.label for run in runs if not run.result.history),
        "layered": layered,
        "layers": differences.layers([run.result for run in layered]) if len(layered) > 1 else [],
        "origins": [(key, [origin[key] for origin in origins]) for key in (origins[0] if origins else ())] + around,
    }


def _of_studies(studies: Sequence[Study]) -> dict[str, Any]:
    qualities = {study.label: study.record.spec.quality for study in studies}
    together = len(set(qualities.values())) == 1
    said = "; ".join(f"{label}: {quality}" for label, quality in qualities.items())
    return {
        "studies": studies,
        "study_rows": fronts.table(studies) if studies else [],
        "front_titles": [(name, _TITLES[name]) for name in ("size", "latency")] if together else [],
        "apart": "" if together else f"Fronts of different objectives are not drawn together ({said}).",
    }
