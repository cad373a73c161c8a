"""The whole sweep: dense baselines, teacher, trials, fresh seeds, the test split, the report.

Every step skips what is finished, so the same call goes on where an earlier one was stopped.
"""

import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import final

import filelock

from lightning_compress.run.result import Result
from lightning_compress.sweep import objective, record, report, runs, space
from lightning_compress.sweep.progress import Progress, shown
from lightning_compress.sweep.publish import publish
from lightning_compress.sweep.record import StudyRecord
from lightning_compress.sweep.runs import Run, Runs, Tools
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.study import JOURNAL, Study, Trial


@final
@dataclass(frozen=True)
class _Job:
    """What every step works on."""

    spec: StudySpec
    space: space.Space
    folder: Path
    runs: Runs
    progress: Progress


def sweep(spec: StudySpec, tools: Tools, *, folder: Path, progress: Progress, fresh: bool = False) -> StudyRecord:
    """Run the study kept in `folder`, or what is left of it, and write its report.

    `fresh` begins anew; the study that was there is kept as `<folder>.previous`.

    Raises:
        ValueError: the study cannot be run as written, or `folder` holds something else (nothing was trained then);
            or the teacher or a dense baseline failed, so that there is nothing to compare with.
    """
    searched = check(spec, tools)
    report_folder = Path(spec.report)
    report_folder.mkdir(parents=True, exist_ok=True)
    with _claim(folder):
        identity = _begin(folder, spec, fresh)
        job = _Job(
            spec=spec,
            space=searched,
            folder=folder,
            runs=Runs(folder, spec=spec, identity=identity, tools=tools),
            progress=progress,
        )
        with progress:
            progress.expect(_num_left(job))
            beside = _baselines(job)
            teaching = _teacher(job, beside)
            _search(job, record.open_study(folder, spec), [*teaching, *beside])
            selected = record.collect(folder)
            _confirm(job, selected, teaching)
            if spec.test:
                _test(job, selected)
            found = record.collect(folder)
            progress.begin("report")
            report.write(found, folder, report_folder)
            publish(found, tools.compose(spec.base)["wandb"], folder=folder, identity=identity)
        progress.finish(found)
    return found


def check(spec: StudySpec, tools: Tools) -> space.Space:
    """Everything about a study that can be checked without training; returns its space.

    Raises:
        ValueError: names what is wrong and what to write.
    """
    searched = space.parse(spec.space)
    base = tools.compose(spec.base)
    seed = base["seed"]
    if not base["measure"].get("latency", True):
        raise ValueError("base: a study's report compares latencies: take measure.latency=false away")
    if base.get("trainer", {}).get("devices", 1) != 1:
        raise ValueError("base: a study trains one run after the other in one process: set trainer.devices=1")
    if seed in spec.confirm_seeds:
        raise ValueError(f"confirm_seeds must be fresh, but {seed} is the seed of the trials themselves")
    dense = {"teacher": spec.teacher or [], **spec.baselines}
    for name, differing in dense.items():
        try:
            tools.compose([*spec.base, *spec.dense, *differing])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for recipe in spec.enqueue:
        space.check_recipe(searched, recipe)
    space.check(searched, spec.base, tools.compose)
    return searched


@contextmanager
def _claim(folder: Path) -> Iterator[None]:
    """Hold the study for this process alone; the lock lies beside the folder, which `fresh` moves."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
            yield
    except filelock.Timeout:
        raise ValueError(f"another process is running the study in {folder}") from None


def _begin(folder: Path, spec: StudySpec, fresh: bool) -> str:
    """Make the study's folder, or check that the one there is of the same study; returns its identity."""
    identity, created = secrets.token_hex(4), datetime.now(UTC).isoformat(timespec="seconds")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / record.FILE).exists():
            raise ValueError(f"{folder} holds no study but is not empty: name another folder, or empty it yourself")
        if fresh:
            _set_aside(folder)
        else:
            earlier, identity, created = record.read_spec(folder)
            spec.continues(earlier, trials_exist=(folder / JOURNAL).exists())
    folder.mkdir(parents=True, exist_ok=True)
    data = {"schema": 1, "identity": identity, "created": created, "spec": spec.asdict()}
    (folder / record.FILE).write_text(json.dumps(data, indent=1), encoding="utf-8")
    return identity


def _set_aside(folder: Path) -> None:
    previous = folder.with_name(f"{folder.name}.previous")
    if previous.exists():
        if not (previous / record.FILE).exists():
            raise ValueError(f"{previous} is in the way and holds no study: move it yourself")
        shutil.rmtree(previous)
    folder.rename(previous)


def _num_left(job: _Job) -> int:
    """Dense runs and trials that are still to come; confirmations are known when the front is."""
    spec, begun = job.spec, (job.folder / JOURNAL).exists()
    spent = record.open_study(job.folder, spec).num_spent if begun else 0
    dense = [f"baseline-{index}" for index in range(len(spec.baselines))] + ["teacher-0"] * (spec.teacher is not None)
    unfinished = sum(runs.finished(job.runs.place(name)) is None for name in dense)
    return unfinished + max(0, spec.trials - spent)


def _baselines(job: _Job) -> list[str]:
    """Train the dense baselines; returns overrides that measure every later latency beside the reference."""
    spec, beside = job.spec, list[str]()
    labels = {name: str(index) for index, name in enumerate(spec.baselines)}
    for name in sorted(spec.baselines, key=lambda name: name != spec.reference):
        run = Run("baseline", labels[name], (*spec.dense, *spec.baselines[name], *beside))
        _must(job, run, f"baseline {name}")
        if name == spec.reference:
            beside = space.overrides({"measure.reference": job.runs.place(run.name).resolve() / "model.onnx"})
    return beside


def _teacher(job: _Job, beside: Sequence[str]) -> list[str]:
    """Train the teacher; returns overrides that name it, network and weights, so that the study file says it once."""
    if job.spec.teacher is None:
        return []
    run = Run("teacher", "0", (*job.spec.dense, *job.spec.teacher, *beside))
    taught = _must(job, run, "the teacher")
    weights = job.runs.place(run.name).resolve() / "weights.pt"
    network = f"++teacher.model={space.written(taught.config['model'])}"
    return [network, *space.overrides({"teacher.weights": weights})]


def _must(job: _Job, run: Run, title: str) -> Result:
    """A run that the sweep cannot do without."""
    known = runs.finished(job.runs.place(run.name))
    job.progress.begin(title)
    try:
        result = job.runs.execute(run)
    except Exception as error:
        where = job.runs.place(run.name) / "error.txt"
        raise ValueError(f"{title} failed, nothing can be compared: {_line(error)} (traceback in {where})") from error
    values = objective.values(result, job.spec.objectives)
    if known is None:
        job.progress.done(_told(job, title, values, result))
    return result


def _search(job: _Job, study: Study, shared: Sequence[str]) -> None:
    """Draw and run trials until the study's number of them is spent."""
    study.enqueue(job.spec.enqueue)
    left = study.interrupted()
    job.progress.expect(len(left))
    for trial in left:
        _try(job, study, trial, shared)
    while study.num_spent < job.spec.trials:
        _try(job, study, study.ask(job.space), shared)


def _try(job: _Job, study: Study, trial: Trial, shared: Sequence[str]) -> None:
    """Run one trial and tell the study how it ended; a failure is told and the sweep goes on."""
    title = f"trial {trial.number}"
    if trial.state != "running":
        job.progress.done(f"{title}: same parameters as trial {trial.repeats}, its result is used again")
        return
    run = Run("trial", str(trial.number), (*shared, *space.overrides(trial.params)))
    job.progress.begin(title)
    try:
        result = job.runs.execute(run)
        told = study.tell(trial.number, objective.values(result, job.spec.objectives))
    except Exception as error:
        told = study.fail(trial.number, _line(error))
    _show(job, study)
    if told.values is None:
        where = job.runs.place(run.name)
        job.progress.done(f"{title} failed: {told.reason} (see {where})")
    else:
        job.progress.done(_told(job, title, told.values, result))


def _confirm(job: _Job, found: StudyRecord, teaching: Sequence[str]) -> None:
    """Train front points and dense baselines again on fresh seeds; what was selected stays selected.

    Only the quality is looked at: a latency does not depend on the seed.
    """
    recipes = [(point, (*teaching, *space.overrides(point.params))) for point in found.front]
    recipes += [(point, (*job.spec.dense, *job.spec.baselines[point.name])) for point in found.baselines]
    todo = [
        (point, Run("confirm", f"{point.run}-{seed}", (*recipe, "measure.latency=false", f"seed={seed}")))
        for point, recipe in recipes
        for seed in job.spec.confirm_seeds
    ]
    todo = [(point, run) for point, run in todo if runs.finished(job.runs.place(run.name)) is None]
    job.progress.expect(len(todo))
    for point, run in todo:
        title = f"{point.name}, seed {run.label.rpartition('-')[2]}"
        job.progress.begin(title)
        try:
            result = job.runs.execute(run)
        except Exception as error:
            job.progress.done(f"{title} failed: {_line(error)} (see {job.runs.place(run.name)})")
        else:
            quality = job.spec.quality
            job.progress.done(f"{title}: {quality} {shown(quality, result.get(quality))} ({result.wall_seconds:.1f} s)")


def _test(job: _Job, found: StudyRecord) -> None:
    job.progress.begin("test split")
    for point in (*found.front, *found.baselines):
        job.runs.test(point.run)


def _show(job: _Job, study: Study) -> None:
    trials = study.trials()
    done = [trial for trial in trials if trial.values is not None]
    directions = list(job.spec.objectives.values())
    best = objective.front([trial.values or () for trial in done], directions)
    rows = [
        (f"trial {done[i].number}", dict(zip(job.spec.objectives, done[i].values or (), strict=True))) for i in best
    ]
    rows.sort(key=lambda row: row[1][job.spec.quality], reverse=directions[0] == "max")
    counts = {state: sum(trial.state == state for trial in trials) for state in ("done", "stopped", "failed")}
    job.progress.state(counts, rows)


def _told(job: _Job, title: str, values: tuple[float, ...], result: Result) -> str:
    numbers = ", ".join(f"{key} {shown(key, value)}" for key, value in zip(job.spec.objectives, values, strict=True))
    return f"{title}: {numbers} ({result.wall_seconds:.1f} s)"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
