"""A table as one HTML file that needs no network. Every value passes through Jinja's escaping."""

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from lightning_compress.core.page_style import HEAD
from lightning_compress.tables import cells
from lightning_compress.tables.cells import Sheet
from lightning_compress.tables.prose import pieces
from lightning_compress.tables.verdict import RULE

_PAGE = """\
<style>
td, th { vertical-align: top; }
td:first-child, th:first-child { white-space: normal; min-width: 7rem; position: sticky; left: 0; background: white; }
th[colspan] { text-align: left; white-space: normal; min-width: 8rem; } th[colspan="1"] { text-align: right; }
td em, .paper { color: var(--soft); }
td span { display: block; font-size: .8rem; color: var(--soft); }
.why { white-space: normal; min-width: 8.5rem; }
.reproduced, .holds { color: #18794e; } .not, .failed, .does-not-hold { color: var(--warn); font-weight: 600; }
sup { color: var(--soft); font-size: .7rem; margin-left: 2px; } ul { margin: 6px 0; padding-left: 20px; }
.about { white-space: pre-line; } .long { white-space: normal; min-width: 14rem; text-align: left; }
details { margin-top: 10px; }
</style>
</head>
<body><main>
<header>
<h1>{{ spec.title }}</h1>
<p class="soft"><a href="{{ spec.paper.url }}">{{ citation }}</a></p>
{% if spec.about %}<p class="about">{{ spec.about | prose }}</p>{% endif %}
</header>
<div class="cards">
{% for word, count in sheet.counts.items() %}
<div class="card"><b>{{ count }}</b><span>{{ word }}</span></div>
{% endfor %}
</div>
<section><h2>How to read it</h2>
<p><em class="paper">Published</em>, mean ± standard deviation (runs), with the mark of its source; <b>ours</b>, the
same; Δ, the difference to the row's baseline. {{ selected }}</p>
<p>{{ rule }}</p>
{% if spec.departures %}<p>Known departures:</p>
<ul>{% for each in spec.departures %}<li>{{ each | prose }}</li>{% endfor %}</ul>{% endif %}
</section>
{% for section in sheet.sections %}
<section>
{% if section.title %}<h2>{{ section.title }}</h2>{% endif %}
<div class="scroll"><table>
<thead><tr><th></th>{% for column in section.columns %}
<th colspan="{{ 2 if column.name in section.published else 1 }}">{{ column.title }}</th>{% endfor %}</tr>
<tr><th></th>{% for column in section.columns %}{% if column.name in section.published %}<th><em>published</em></th>
{% endif %}<th>ours</th>{% endfor %}</tr></thead>
<tbody>
{% for line in section.lines %}
<tr id="{{ line.row.name }}"><td>{{ line.row.title }}</td>
{% for column in section.columns %}{% set cell = line.cells[column.name] %}
{% if column.name in section.published %}
<td>{% if cell.paper %}<em>{{ cell.paper }}</em><sup>{{ cell.mark }}</sup>{% endif %}
{% if cell.paper_delta %}<span><em>Δ {{ cell.paper_delta }}</em></span>{% endif %}</td>
{% endif %}
<td>{% if cell.here %}<b>{{ cell.here }}</b>{% endif %}
{% if cell.word %}<span class="{{ cell.word | tag }}">{{ cell.word }}</span>{% endif %}
{% if cell.why %}<span class="why">{{ cell.why }}</span>{% endif %}
{% if cell.here_delta %}<span>Δ {{ cell.here_delta }}</span>{% endif %}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
<ul>{% for line in section.lines %}{% for remark in line.remarks %}
<li>{{ line.row.title }}: {{ remark | prose }}</li>{% endfor %}{% endfor %}</ul>
{% if section.lines | selectattr("runs") | list %}
<details><summary>Runs</summary><div class="scroll"><table>
<thead><tr><th>row</th><th class="long">made again by</th>{% for fact in facts %}<th>{{ fact }}</th>{% endfor %}</tr>
</thead><tbody>
{% for line in section.lines if line.runs %}
<tr><td>{{ line.row.title }}</td><td class="long"><code>{{ line.runs.command }}</code></td>
{% for fact in line.runs.facts %}<td>{{ fact }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}
</section>
{% endfor %}
{% if sheet.claims %}
<section><h2>Orderings</h2><div class="scroll"><table>
<thead><tr><th class="long">published</th><th>ours</th><th>verdict</th><th>source</th></tr></thead><tbody>
{% for claim in sheet.claims %}
<tr><td class="long">{{ claim.text }}</td><td><b>{{ claim.here }}</b></td>
<td><span class="{{ claim.word | tag }}">{{ claim.word }}</span></td><td>{{ claim.source }}</td></tr>
{% endfor %}
</tbody></table></div></section>
{% endif %}
<section><h2>Sources</h2><dl>
{% for mark, source in sheet.sources.items() %}<dt>{{ mark }}</dt><dd>{{ source }}</dd>{% endfor %}
</dl><p class="soft">Digest of the records: {{ sheet.digest }}</p></section>
</main></body></html>
"""


def render(sheet: Sheet) -> str:
    """The page; published values are in italics with the mark of their source, ours bold."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        prose=_prose, tag=lambda word: "failed" if word[:6] == "failed" else word.replace(" ", "-")
    )
    page = environment.from_string(HEAD + _PAGE).render(
        title=sheet.spec.title,
        sheet=sheet,
        spec=sheet.spec,
        citation=cells.citation(sheet.spec.paper),
        selected=cells.SELECTED[sheet.spec.selection],
        rule=RULE,
        facts=cells.FACTS,
    )
    return f"{page}\n"


def _prose(text: str) -> Markup:
    found = Markup()
    for kind, inner, url in pieces(text.strip()):
        if kind == "text":
            found += escape(inner)
        elif kind == "a":
            found += Markup('<a href="{}">{}</a>').format(url, inner)
        else:
            found += Markup(f"<{kind}>{{}}</{kind}>").format(inner)
    return found
