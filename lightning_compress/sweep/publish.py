"""The study's own W&B run: Pareto table, interactive front, and one model artifact per front point."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_compress.sweep import record as records
from lightning_compress.sweep import report
from lightning_compress.sweep.record import Point, StudyRecord
from lightning_compress.tracking.wandb import Labels, Run, choose_mode, log_run

_FILES = ("packed", "onnx")
_MARK = "published.txt"


def publish(record: StudyRecord, wandb: Mapping[str, Any], *, folder: Path, identity: str) -> None:
    """Log the study kept in `folder` to W&B, unless nothing was run since it was logged last.

    `wandb` is that part of a run's config: `mode` and `project` are read.
    """
    mark, state = folder / _MARK, str(len(records.results(folder)))
    if mark.exists() and mark.read_text() == state:
        return
    labels = Labels(
        project=wandb["project"],
        id=f"{identity}-study",
        name=record.spec.name,
        group=record.spec.name,
        job_type="study",
        tags=(record.spec.name, "study"),
    )
    mode = choose_mode(folder, wandb["mode"]).name
    with log_run(labels, config=record.spec.asdict(), folder=folder, mode=mode) as run:
        _tables(run, record)
        for point in record.front:
            _model(run, record, point, folder / "runs" / point.run)
        run.summary(summary(record))
    mark.write_text(state)


def summary(record: StudyRecord) -> dict[str, float]:
    """The study in a few numbers, by their W&B summary keys."""
    counts = {f"trials/{state}": record.count(state) for state in ("done", "stopped", "failed")}
    return {
        "hypervolume": record.hypervolume.value,
        "front/points": len(record.front),
        "train/seconds": record.seconds,
        **counts,
    }


def _tables(run: Run, record: StudyRecord) -> None:
    rows = [records.row(record, point) for point in (*record.front, *record.baselines)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    run.table("pareto", columns, [[row.get(column) for column in columns] for row in rows])
    run.plotly("pareto_size", report.front_figure(record, report.SIZE))
    run.plotly("pareto_latency", report.front_figure(record, report.LATENCY))


def _model(run: Run, record: StudyRecord, point: Point, folder: Path) -> None:
    row = records.row(record, point)
    known = (record.spec.quality, *record.spec.objectives, "packed_bytes", "latency_ms", "faster", "smaller")
    with tempfile.TemporaryDirectory() as name:
        staged = Path(name)
        for file in ("result.json", *(point.result.files[key] for key in _FILES)):
            shutil.copy(folder / file, staged / Path(file).name)
        run.artifact(
            staged,
            f"{record.spec.name}-{point.run}",
            type="model",
            metadata={key: row[key] for key in known} | {"params": point.params},
            aliases=["pareto"],
        )
