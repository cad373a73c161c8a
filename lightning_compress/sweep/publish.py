"""The study's own W&B run: how the front grew, Pareto table, interactive front, one model artifact per front point."""

import json
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, final

from lightning_compress.core.files import write_json
from lightning_compress.sweep import record as records
from lightning_compress.sweep import report
from lightning_compress.sweep.record import Point, StudyRecord
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.tracking.wandb import Labels, Run, log_run

AXIS = "trials/done"
UPLOAD_SECONDS = 120.0  # the models of the front are uploaded at the end
_FILES = ("packed", "onnx")
MARK = "published.json"


def study_labels(spec: StudySpec, identity: str, project: str) -> Labels:
    """What the study's own run is filed under; its `identity` tells two studies of one name apart."""
    return Labels(
        project=project,
        id=f"{identity}-study",
        name=spec.name,
        group=spec.name,
        job_type="study",
        tags=(spec.name, "study"),
    )


@final
class StudyRun:
    """The run of the study kept in `folder`: one at W&B, whatever number of times the sweep is stopped and goes on.

    It is opened when there is something to log first, and again under its id after a restart; `published.json` in the
    study says what was logged last, and the run's address if it has one. `mode` is as `log_run` takes it. Leaving the
    block closes the run.
    """

    def __init__(self, labels: Labels, spec: StudySpec, folder: Path, mode: str) -> None:
        self._labels, self._spec, self._folder, self._mode = labels, spec, folder, mode
        self._open = ExitStack()
        self._run: Run | None = None
        self._mark: dict[str, Any] = {"done": 0, "front": [], "results": None}
        if (folder / MARK).exists():
            self._mark |= json.loads((folder / MARK).read_text(encoding="utf-8"))

    def __enter__(self) -> Self:
        self._open.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def refresh(self, record: StudyRecord) -> None:
        """Log one point of the study's curves if a trial ended since the last one, and its table if the front moved."""
        front = [point.run for point in record.front]
        done = record.count("done")
        if done <= self._mark["done"]:
            return
        run = self._opened()
        run.log({AXIS: done, **{key: value for key, value in summary(record).items() if key != AXIS}})
        if front != self._mark["front"]:
            _table(run, record)
        self._note(done=done, front=front)

    def finish(self, record: StudyRecord) -> None:
        """Log the study as it ended, its figures and models too, unless nothing was run since that was done last."""
        results = len(records.results(self._folder))
        if self._mark["results"] == results:
            return
        self.refresh(record)
        run = self._opened()
        _table(run, record)
        run.plotly("pareto_size", report.front_figure(record, report.SIZE))
        run.plotly("pareto_latency", report.front_figure(record, report.LATENCY))
        for point in record.front:
            _model(run, record, point, self._folder / "runs" / point.run)
        run.summary(summary(record))
        self._note(results=results)

    def _opened(self) -> Run:
        if self._run is None:
            opening = log_run(
                self._labels,
                config=self._spec.asdict(),
                folder=self._folder,
                mode=self._mode,
                x_axis=AXIS,
                patience=UPLOAD_SECONDS,
            )
            self._run = self._open.enter_context(opening)
            if self._run.url:
                self._note(url=self._run.url)
        return self._run

    def _note(self, **known: Any) -> None:
        self._mark |= known
        write_json(self._folder / MARK, self._mark)


def summary(record: StudyRecord) -> dict[str, float]:
    """The study in a few numbers, by their W&B summary keys."""
    counts = {f"trials/{state}": record.count(state) for state in ("done", "stopped", "failed")}
    return {
        "hypervolume": record.hypervolume.value,
        "front/points": len(record.front),
        "train/seconds": record.seconds,
        **counts,
    }


def _table(run: Run, record: StudyRecord) -> None:
    rows = [records.row(record, point) for point in (*record.front, *record.baselines)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    run.table("pareto", columns, [[row.get(column) for column in columns] for row in rows])


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
