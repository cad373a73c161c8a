"""The figures of a comparison: curves of the runs and fronts of the studies, one over the other."""

import html
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from lightning_compress.compare.subject import Run, Study
from lightning_compress.sweep import report
from lightning_compress.sweep.report import LATENCY, SIZE, Axis

_COLORS = ("#2563eb", "#d64545", "#0f9d58", "#b44d12", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#616e7c")


def curves(subjects: Sequence[Run | Study]) -> dict[str, go.Figure]:
    """What the runs logged by epoch, by the figure's name; in each a menu chooses the number."""
    runs = [(color, one) for color, one in _colored(subjects) if isinstance(one, Run)]
    keys = sorted({key for _, run in runs for row in run.result.history for key in row if key != "epoch"})
    parts = {
        "validation": [key for key in keys if key.startswith("val/")],
        "training": sorted((key for key in keys if not key.startswith("val/")), key=lambda key: key != "train/loss"),
    }
    return {name: _curves(runs, chosen) for name, chosen in parts.items() if chosen}


def fronts(subjects: Sequence[Run | Study]) -> dict[str, go.Figure]:
    """Quality over bytes and over latency: each study's front, and the runs as single points."""
    quality = next(one.record.spec.quality for one in subjects if isinstance(one, Study))
    return {name: _fronts(subjects, axis, quality) for name, axis in (("size", SIZE), ("latency", LATENCY))}


def _colored(subjects: Sequence[Run | Study]) -> list[tuple[str, Run | Study]]:
    """Each with the color that it has in all figures."""
    return list(zip(cycle(_COLORS), subjects, strict=False))


def _curves(runs: Sequence[tuple[str, Run]], keys: Sequence[str]) -> go.Figure:
    figure, shown = go.Figure(), list[str]()
    for key in keys:
        for color, run in runs:
            points = [(row["epoch"] + 1, row[key]) for row in run.result.history if key in row]
            if points:
                shown.append(key)
                look = {"line": {"color": color, "width": 1.8}, "marker": {"size": 5}, "visible": key == keys[0]}
                figure.add_trace(_trace(run, points, mode="lines+markers", **look))
    figure.update_xaxes(title="epoch", rangemode="tozero")
    figure.update_yaxes(title=html.escape(keys[0]))
    return report.styled(figure).update_layout(updatemenus=_menu(keys, shown), margin={"t": 56}, showlegend=True)


def _menu(keys: Sequence[str], shown: Sequence[str]) -> list[dict[str, Any]]:
    """The menu that shows the traces of one key alone, where there is a choice; `shown` is the key of each trace."""
    if len(keys) < 2:
        return []
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "bgcolor": "white"}
    buttons = [
        {
            "label": html.escape(key),
            "method": "update",
            "args": [{"visible": [other == key for other in shown]}, {"yaxis.title.text": html.escape(key)}],
        }
        for key in keys
    ]
    return [{"buttons": buttons, **place}]


def _fronts(subjects: Sequence[Run | Study], axis: Axis, quality: str) -> go.Figure:
    figure, costs = go.Figure(), list[float]()
    for color, one in _colored(subjects):
        if isinstance(one, Run):
            found = one.result.numbers
            known = quality in found and f"cost/{axis.column}" in found
            points, texts = [(found[f"cost/{axis.column}"], found[quality])] if known else [], [html.escape(one.label)]
        else:
            corners = report.steps(one.record, axis)
            line = {"shape": "hv", "color": color, "width": 1.5}
            figure.add_trace(
                _trace(one, corners, mode="lines", line=line, hoverinfo="skip", legendgroup=one.label, showlegend=False)
            )
            points = [(float(point.result.cost[axis.column]), point.values[0]) for point in one.record.front]
            texts = [report.hover(one.record, point) for point in one.record.front]
        marker = {"color": color, "size": 10, "symbol": "star" if isinstance(one, Run) else "circle"}
        more = {"text": texts, "hovertemplate": "%{text}<extra></extra>", "legendgroup": one.label}
        figure.add_trace(_trace(one, points, mode="markers", marker=marker, **more))
        costs += [cost for cost, _ in points]
    return report.along(figure, axis, costs, quality)


def _trace(one: Run | Study, points: Sequence[tuple[float, float]], **look: Any) -> go.Scatter:
    return go.Scatter(x=[x for x, _ in points], y=[y for _, y in points], name=html.escape(one.label), **look)
