"""The report's page: one HTML file that needs no network. Every value passes through Jinja's escaping."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lightning_compress.sweep import record as records
from lightning_compress.sweep.page_template import CLOSING, OPENING, STUDY
from lightning_compress.sweep.progress import shown, size
from lightning_compress.sweep.record import Point, StudyRecord


def render(record: StudyRecord, *, figures: str, script: str) -> str:
    """The page as text; `figures`, JSON of figures by element id, and plotly's `script` go in as they are."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(size=size, number=lambda value: shown("", value))
    rows = [_row(record, point) for point in (*record.front, *record.baselines)]
    return environment.from_string(OPENING + STUDY + CLOSING).render(
        title=f"{record.spec.name}: Pareto front",
        record=record,
        spec=record.spec,
        rows=rows,
        devices=list(dict.fromkeys(label for row in rows for label in row["elsewhere"])),
        best=_headline(rows, record),
        figures=Markup(figures),
        script=Markup(script),
        facts=_facts(record),
        failures=[trial for trial in record.trials if trial.state == "failed"],
        test=record.spec.quality.replace("val/", "test/"),
    )


def _row(record: StudyRecord, point: Point) -> dict[str, Any]:
    return {
        "quality": point.values[0],
        "layers": _layers(point),
        "point_params": point.params,
        "on_front": point.kind == "trial",
        "numbers": records.row(record, point),
        "elsewhere": {one.label: one for one in point.elsewhere},
    }


def _layers(point: Point) -> dict[str, Any]:
    """The per-layer table as text cells."""
    columns = list(dict.fromkeys(key for layer in point.result.layers for key in layer))
    return {
        "columns": columns,
        "cells": [[_cell(column, layer.get(column)) for column in columns] for layer in point.result.layers],
    }


def _cell(column: str, value: object) -> str:
    if isinstance(value, list | tuple):
        return "x".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:.1%}" if column == "sparsity" else f"{value:.4g}"
    return "" if value is None else str(value)


def _headline(rows: Sequence[Mapping[str, Any]], record: StudyRecord) -> Mapping[str, Any] | None:
    """The smallest front point within one point of the dense student's quality, if quality is a share to maximise."""
    reference = record.reference
    if reference is None or record.spec.objectives[record.spec.quality] != "max":
        return None
    near = [row for row in rows if row["on_front"] and row["quality"] >= reference.values[0] - 0.01]
    return min(near, key=lambda row: row["numbers"]["packed_bytes"] * row["numbers"]["latency_ratio"], default=None)


def _foresight(record: StudyRecord) -> dict[str, str]:
    """Rank correlation of each rung with the end of training, and the error of predicted bytes."""
    seen, facts = record.foresight, dict[str, str]()
    for rung in seen.rungs:
        parts = [f"{name} {_cell('', value) or 'unknown'}" for name, value in zip(seen.names, rung.values, strict=True)]
        facts[f"rank correlation, epoch {rung.level} to the end"] = f"{', '.join(parts)} ({rung.trials} trials)"
    if seen.bytes_missed is not None:
        facts["predicted bytes"] = f"off by {seen.bytes_missed[0]:.2%} (median), {seen.bytes_missed[1]:.2%} at most"
    if seen.warnings:
        facts["mind"] = "; ".join(seen.warnings)
    return facts


def _facts(record: StudyRecord) -> dict[str, str]:
    first, volume, spec = record.points[0].result, record.hypervolume, record.spec
    commit = first.provenance.get("commit")
    bounds = "; ".join(
        f"{name} {shown(name, low)} (best) to {shown(name, high)} (worst)"
        for name, low, high in zip(spec.objectives, volume.ideal, volume.nadir, strict=True)
    )
    return {
        **_foresight(record),
        "trials": ", ".join(f"{record.count(state)} {state}" for state in ("done", "stopped", "failed")),
        "sampler": f"{spec.sampler}, seed {spec.sampler_seed}",
        "seeds": f"trials {first.seed}; confirmation {', '.join(map(str, spec.confirm_seeds)) or 'none'}",
        "begun": record.created,
        "training time": f"{record.seconds / 60:.1f} minutes over all runs",
        "device": f"{first.cost.get('device')}, {first.cost.get('runtime')}, {first.cost.get('threads')} thread(s), "
        f"batch {first.cost.get('batch_size')}",
        **({"latency": first.cost["latency_source"]} if "latency_source" in first.cost else {}),
        "commit": "none" if not commit else commit + (" with changes" if first.provenance.get("dirty") else ""),
        "hypervolume": f"{volume.value:.4f} of 1",
        "hypervolume scale": f"each objective linear over all trials and dense baselines: {bounds}; reference point "
        f"{volume.reference:g} on every axis where best is 0 and worst is 1; divided by the whole box",
    }
