"""The Jinja templates of the pages, which share their style."""

from lightning_compress.core.page_style import HEAD

OPENING = f"""{HEAD}<script>{{{{ script }}}}</script>
</head>
<body><main>
"""

CLOSING = """\
<script>
// Drawn last: only now is the width of every column known.
const options = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"]};
for (const [id, figure] of Object.entries({{ figures }}))
  Plotly.newPlot(id, figure.data, figure.layout, options);
</script>
</main></body></html>
"""

STUDY = """\
<header>
<h1>{{ spec.name }}</h1>
<p class="soft">{{ record.front | length }} front points from {{ record.trials | length }} trials, beside
{{ record.baselines | length }} dense baselines. Selected on the validation split only.</p>
</header>

<div class="cards">
{% if best %}
<div class="card"><b>{{ "%.1f" | format(best.numbers.smaller) }}&times;</b>
<span>smaller packed file, {{ best.numbers.name }}</span></div>
<div class="card"><b>{{ "%.2f" | format(best.numbers.faster) }}&times;</b><span>faster, measured</span></div>
<div class="card"><b>{{ "%+.2f" | format(100 * (best.quality - record.reference.values[0])) }}</b>
<span>points of {{ spec.quality }} against the dense student</span></div>
{% endif %}
<div class="card"><b>{{ record.front | length }}</b><span>points on the front</span></div>
<div class="card"><b>{{ "%.3f" | format(record.hypervolume.value) }}</b><span>hypervolume (scale below)</span></div>
<div class="card"><b>{{ record.count("done") }}</b><span>trials done, {{ record.count("stopped") }} stopped,
{{ record.count("failed") }} failed</span></div>
</div>

<div class="pair">
<section><h2>Quality and size</h2><div id="size"></div></section>
<section><h2>Quality and latency</h2><div id="latency"></div></section>
</div>

<section>
<h2>Front and dense baselines</h2>
<div class="scroll"><table>
<thead><tr><th>point</th><th>{{ spec.quality }}</th><th>fresh seeds: mean ± sd (n)</th><th>{{ test }}</th>
<th>packed</th>
<th>&times; smaller</th><th>latency, ms</th><th>&times; faster</th>
{% for device in devices %}<th>ms (&times; faster)<br>{{ device }}</th>{% endfor %}
<th>sparsity</th><th>bits</th><th>non-zeros</th></tr></thead>
<tbody>
{% for row in rows %}{% set n = row.numbers %}
<tr{% if not row.on_front %} class="dense"{% endif %}>
<td>{% if row.on_front %}<a href="#{{ n.name | replace(" ", "-") }}">{{ n.name }}</a>{% else %}dense: {{ n.name }}
{% endif %}{% if n.beaten_by %}<span class="tag">a dense net is better: {{ n.beaten_by }}</span>{% endif %}</td>
<td>{{ row.quality | number }}</td>
<td>{% if n.confirmed_n %}{{ n.confirmed_mean | number }}{% if n.confirmed_sd is not none %} ±
{{ "%.2g" | format(n.confirmed_sd) }}{% endif %} ({{ n.confirmed_n }}){% endif %}</td>
<td>{{ n.get(test) | number }}</td>
<td>{{ n.packed_bytes | size }}</td>
<td>{{ "%.1f" | format(n.smaller) }}</td>
<td>{{ n.latency_ms | number }}</td>
<td>{{ "%.2f" | format(n.faster) }}</td>
{% for device in devices %}<td>{% if device in row.elsewhere %}{{ row.elsewhere[device].latency_ms | number }}
({{ "%.2f" | format(1 / row.elsewhere[device].latency_ratio) }}){% endif %}</td>{% endfor %}
<td>{{ "%.1f" | format(100 * n.sparsity) }} %</td>
<td>{{ n.bits }}</td>
<td>{{ "{:,}".format(n.nonzeros | int) }}</td>
</tr>
{% endfor %}
</tbody></table></div>
<p class="soft">Sizes and latencies compare with the dense baseline {{ spec.reference }}; latency is
{% if "latency" in facts %}{{ facts.latency }}; columns with a device's name were measured{% else %}the median of the
exported model, timed beside the dense one in the same call{% endif %}. Fresh seeds retrain a recipe; they never change
the selection.</p>
</section>

<section>
<h2>Layers of each front point</h2>
{% for row in rows if row.on_front %}
<details id="{{ row.numbers.name | replace(" ", "-") }}"><summary>{{ row.numbers.name }}
<span>{{ row.numbers.packed_bytes | size }}, {{ row.numbers.bits }},
{{ "%.0f" | format(100 * row.numbers.sparsity) }} % sparse</span></summary>
<p>{% for key, value in row.point_params.items() %}<code>{{ key }}={{ value }}</code>{% endfor %}</p>
<div class="scroll"><table>
<thead><tr>{% for column in row.layers.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>{% for cells in row.layers.cells %}<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div></details>
{% endfor %}
</section>

<div class="pair">
{% if record.importances %}
<section><h2>What decides whether a trial reaches the front</h2><div id="importances"></div>
<p class="soft">PED-ANOVA over the finished trials; few trials make this a hint, not a finding.</p></section>
{% endif %}
<section><h2>Study</h2><dl>
{% for key, value in facts.items() %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}
</dl></section>
</div>

{% if failures %}
<section><h2>Failed trials</h2>
{% for trial in failures %}<details><summary>trial {{ trial.number }}<span>{{ trial.reason }}</span></summary>
<p>{% for key, value in trial.params.items() %}<code>{{ key }}={{ value }}</code>{% endfor %}</p></details>{% endfor %}
</section>
{% endif %}
"""
