"""The study as files to look at: figures, table, page. The only file that imports plotly and matplotlib."""

import csv
import html
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from lightning_compress.sweep import objective, page
from lightning_compress.sweep import record as records
from lightning_compress.sweep.progress import shown, size
from lightning_compress.sweep.record import Point, StudyRecord

_INK, _GREY, _DENSE, _LINE = "#1f2933", "#b8c2cc", "#d64545", "#2563eb"


@final
@dataclass(frozen=True)
class Axis:
    """A cost along x, and the other one as colour; `column` names the number in a row of the study's table."""

    column: str
    title: str
    colour: str
    colour_title: str

    def label(self, value: float) -> str:
        """A tick's text."""
        return size(value) if self.column.endswith("bytes") else f"{value:g}"


_BEATEN, _STOPPED = "other trials", "stopped early, as they were then"
SIZE = Axis("packed_bytes", "packed file", "faster", "times faster")
LATENCY = Axis("latency_ratio", "latency, dense student = 1", "smaller", "times smaller")


def write(record: StudyRecord, folder: Path, report: Path) -> None:
    """Write `front.csv`, `front.png`, `index.html` and `results/*/result.json` of the study in `folder`."""
    report.mkdir(parents=True, exist_ok=True)
    _csv(record, report / "front.csv")
    _png(record, report / "front.png")
    text = page.render(record, figures=_json(record), script=get_plotlyjs())
    (report / "index.html").write_text(text, encoding="utf-8")
    _copy_results(folder, report / "results")


def front_figure(record: StudyRecord, axis: Axis) -> go.Figure:
    """Quality over one cost: every trial, the front, the dense baselines; hover shows parameters and costs."""
    beaten, stopped = _others(record)
    figure = go.Figure()
    if stopped:
        figure.add_trace(_dots(record, stopped, axis, _STOPPED, {"color": _GREY, "size": 7, "symbol": "circle-open"}))
    figure.add_trace(_dots(record, beaten, axis, _BEATEN, {"color": _GREY, "size": 8}))
    figure.add_trace(_staircase(record, axis))
    figure.add_trace(_dots(record, record.front, axis, "front", _coloured(record, axis)))
    square = {"symbol": "square", "color": _DENSE, "size": 10, "line": {"color": "white", "width": 1}}
    dense = sorted(record.baselines, key=lambda point: _x(record, point, axis))
    figure.add_trace(
        _dots(record, dense, axis, "dense baselines", square, mode="lines+markers").update(
            line={"color": _DENSE, "dash": "dot", "width": 1.5}
        )
    )
    if record.teacher:
        star = {"symbol": "star", "color": _INK, "size": 13}
        figure.add_trace(_dots(record, [record.teacher], axis, "teacher", star))
    return along(figure, axis, [_x(record, point, axis) for point in _all(record)], record.spec.quality)


def along(figure: go.Figure, axis: Axis, values: Sequence[float], quality: str) -> go.Figure:
    """The figure with `quality` over a cost on a logarithmic scale that has all `values`."""
    ticks = _ticks(values)
    figure.update_xaxes(type="log", title=axis.title, tickvals=ticks, ticktext=[axis.label(tick) for tick in ticks])
    figure.update_yaxes(title=html.escape(quality))
    return styled(figure)


def _others(record: StudyRecord) -> tuple[list[Point], list[Point]]:
    """Trials that are not on the front: those trained in full, and those stopped before."""
    front = {point.name for point in record.front}
    rest = [point for point in record.points if point.name not in front]
    return [point for point in rest if point.epochs is None], [point for point in rest if point.epochs is not None]


def importance_figure(record: StudyRecord) -> go.Figure:
    """Bars of how much each parameter decides whether a trial reaches the front."""
    names = list(reversed(record.importances))
    figure = go.Figure(
        go.Bar(
            x=[record.importances[name] for name in names],
            y=[html.escape(name) for name in names],
            orientation="h",
            marker={"color": _LINE},
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.update_xaxes(title="importance", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    return styled(figure).update_layout(height=120 + 32 * len(names))


def _dots(
    record: StudyRecord,
    points: Sequence[Point],
    axis: Axis,
    name: str,
    marker: dict[str, Any],
    *,
    mode: str = "markers",
) -> go.Scatter:
    return go.Scatter(
        x=[_x(record, point, axis) for point in points],
        y=[point.values[0] for point in points],
        mode=mode,
        name=name,
        marker=marker,
        text=[hover(record, point) for point in points],
        hovertemplate="%{text}<extra></extra>",
    )


def _coloured(record: StudyRecord, axis: Axis) -> dict[str, Any]:
    return {
        "color": [records.row(record, point)[axis.colour] for point in record.front],
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": axis.colour_title, "side": "right"}, "thickness": 12, "outlinewidth": 0},
        "size": 12,
        "line": {"color": _INK, "width": 1},
    }


def steps(record: StudyRecord, axis: Axis) -> list[tuple[float, float]]:
    """Corners of the best quality at or below each cost, over trials that may be on the front."""
    full = [point for point in record.points if point.epochs is None and point.feasible]
    pairs = [(_x(record, point, axis), point.values[0]) for point in full]
    directions = ["min", next(iter(record.spec.objectives.values()))]
    return sorted(pairs[index] for index in objective.front(pairs, directions))


def _staircase(record: StudyRecord, axis: Axis) -> go.Scatter:
    corners = steps(record, axis)
    return go.Scatter(
        x=[x for x, _ in corners],
        y=[y for _, y in corners],
        mode="lines",
        name="best at this cost",
        line={"shape": "hv", "color": _LINE, "width": 1.5},
        hoverinfo="skip",
    )


def hover(record: StudyRecord, point: Point) -> str:
    """Everything about a point in HTML that plotly shows; names are the user's, so they are escaped."""
    row = records.row(record, point)
    lines = [f"<b>{html.escape(point.name)}</b>"]
    for key, value in row.items():
        if key in ("name", "kind", "confirmed_n") or value in (None, ""):
            continue
        text = shown(key, value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        lines.append(f"{html.escape(key)}: {html.escape(text)}")
    return "<br>".join(lines)


def styled(figure: go.Figure) -> go.Figure:
    """The figure in the look that those of all pages share."""
    figure.update_xaxes(gridcolor="#e8ecf0", zeroline=False, linecolor=_GREY)
    figure.update_yaxes(gridcolor="#e8ecf0", zeroline=False, linecolor=_GREY)
    return figure.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        margin={"l": 64, "r": 16, "t": 28, "b": 52},
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"size": 12}},
        height=460,
    )


def _json(record: StudyRecord) -> str:
    """The page's figures; plotly writes < and > of its data as escapes, so no text can end the script it stands in."""
    figures = {"size": front_figure(record, SIZE), "latency": front_figure(record, LATENCY)}
    if record.importances:
        figures["importances"] = importance_figure(record)
    entries = [f'"{name}": {figure.to_json()}' for name, figure in figures.items()]
    return f"{{{', '.join(entries)}}}"


def _png(record: StudyRecord, path: Path) -> None:
    figure = Figure(figsize=(8.4, 5.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    beaten, stopped = _others(record)

    def draw(points: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [_x(record, point, SIZE) for point in points], [point.values[0] for point in points]

    if stopped:
        axes.scatter(*draw(stopped), s=22, facecolors="none", edgecolors=_GREY, label=_STOPPED, zorder=2)
    axes.scatter(*draw(beaten), s=28, color=_GREY, label=_BEATEN, zorder=2)
    corners = steps(record, SIZE)
    axes.step(*zip(*corners, strict=True), where="post", color=_LINE, lw=1.2, label="best at this size", zorder=1)
    colours = [records.row(record, point)["faster"] for point in record.front]
    dots = axes.scatter(*draw(record.front), c=colours, s=64, edgecolors=_INK, lw=0.8, label="front", zorder=4)
    figure.colorbar(dots, label="times faster than the dense student")
    dense = sorted(record.baselines, key=lambda point: _x(record, point, SIZE))
    axes.plot(*draw(dense), "s:", color=_DENSE, ms=7, label="dense baselines", zorder=3)
    for point in dense:
        at = (_x(record, point, SIZE), point.values[0])
        axes.annotate(
            point.name, at, xytext=(6, -12), textcoords="offset points", fontsize=8, color=_DENSE, parse_math=False
        )
    if record.teacher:
        axes.plot(*draw([record.teacher]), "*", color=_INK, ms=12, ls="none", label="teacher", zorder=3)
    ticks = _ticks([_x(record, point, SIZE) for point in _all(record)])
    axes.set_xscale("log")
    axes.set_xticks(ticks, [SIZE.label(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="packed file (log scale)", ylabel=record.spec.quality)
    axes.grid(color="#e8ecf0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    counts = f"{record.count('done')} done, {record.count('stopped')} stopped, {record.count('failed')} failed"
    axes.set_title(f"{record.spec.name}: trials {counts}", loc="left", fontsize=11, parse_math=False)
    figure.savefig(path, metadata={"Software": None})


def _csv(record: StudyRecord, path: Path) -> None:
    rows = [records.row(record, point) for point in (*record.front, *record.baselines)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _copy_results(folder: Path, target: Path) -> None:
    """Mirror the study's result files; those of an earlier study of the name go."""
    for old in target.glob("*-*/result.json"):
        old.unlink()
        if not any(old.parent.iterdir()):
            old.parent.rmdir()
    for path in records.results(folder):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.parent.name)


def _x(record: StudyRecord, point: Point, axis: Axis) -> float:
    return float(point.result.cost[axis.column])


def _all(record: StudyRecord) -> list[Point]:
    return [*record.points, *record.baselines, *([record.teacher] if record.teacher else [])]


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers that cover `values` on a logarithmic axis, at most seven where that leaves any."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        steps = [factor * 10.0**power for power in range(low, high + 1) for factor in factors]
        ticks = [step for step in steps if min(values) / 1.5 <= step <= max(values) * 1.5]
        if len(ticks) <= 7:
            break
    return ticks
