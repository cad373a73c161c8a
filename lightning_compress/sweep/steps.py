"""The steps of a sweep, each a source of runs that one loop works through."""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, final

from lightning_compress.launch import job as launched
from lightning_compress.run import traffic
from lightning_compress.run.result import Result
from lightning_compress.sweep import check, control, elsewhere, objective, record, runs, space
from lightning_compress.sweep.ledger import Ledger
from lightning_compress.sweep.pool import Event, Failed, Finished, Pool, Retried
from lightning_compress.sweep.progress import Progress, told
from lightning_compress.sweep.publish import StudyRun
from lightning_compress.sweep.record import Point, StudyRecord
from lightning_compress.sweep.runs import Run, Runs
from lightning_compress.sweep.search import Plan, Search
from lightning_compress.sweep.spec import StudySpec

_PAUSE = 0.02
_REFRESH = 60.0


class Source(Protocol):
    """Where the runs of one step come from."""

    def next(self) -> Run | None:
        """The run to start now; None while there is none, and for good when nothing runs either."""

    def on(self, event: Event) -> None:
        """Take note of what happened to a run."""


@final
@dataclass(frozen=True)
class Job:
    """What every step works on."""

    spec: StudySpec
    folder: Path
    runs: Runs
    ledger: Ledger
    pool: Pool
    words: control.Words
    progress: Progress
    mirror: StudyRun


def drive(job: Job, source: Source) -> None:
    """Run what a source gives, side by side, until it has no more."""
    pool = job.pool
    while True:
        events = pool.poll()
        for event in events:
            source.on(event)
        run = source.next() if pool.has_room(job.runs.resources) else None
        if run is not None:
            job.progress.begin(run.name)
            pool.start(run)
        elif pool.idle and not events:
            return
        elif not events:
            time.sleep(_PAUSE)
        if added := job.words.read():
            pool.launcher.resize(pool.launcher.workers + added)
            job.progress.note(f"{pool.launcher.workers} runs at once from now on")


def dense(job: Job) -> tuple[str, ...]:
    """Train the dense baselines and the teacher; returns overrides that name the teacher.

    Raises:
        ValueError: one of them failed, so that there is nothing to compare with.
    """
    drive(job, _Listed(job, _dense_runs(job), list(job.spec.objectives), needed=True))
    return _teaching(job)


def _dense_runs(job: Job) -> list[tuple[str, Run]]:
    """Titles and runs of the dense baselines, the reference first, and of the teacher."""
    spec = job.spec
    labels = {name: str(index) for index, name in enumerate(spec.baselines)}
    ordered = sorted(spec.baselines, key=lambda name: name != spec.reference)
    found = [
        (f"baseline {name}", Run("baseline", labels[name], (*spec.dense, *spec.baselines[name]))) for name in ordered
    ]
    if spec.teacher is not None:
        found.append(("the teacher", Run("teacher", "0", (*spec.dense, *spec.teacher))))
    return found


@final
class _Listed:
    """Runs that are known beforehand, with titles; one that fails is left out, or ends the sweep if it is `needed`."""

    def __init__(self, job: Job, titled: Sequence[tuple[str, Run]], objectives: Sequence[str], *, needed: bool) -> None:
        self._job, self._objectives, self._needed = job, objectives, needed
        self._titles = {run.name: title for title, run in titled}
        self._left = deque(run for _, run in titled)
        self._known = {run.name for run in self._left if runs.finished(job.runs.place(run.name)) is not None}
        job.progress.expect(len(titled) - len(self._known))

    def next(self) -> Run | None:
        return self._left.popleft() if self._left else None

    def on(self, event: Event) -> None:
        title, name = self._titles[event.run.name], event.run.name
        where = self._job.runs.place(name)
        if isinstance(event, Failed) and self._needed:
            raise ValueError(f"{title} failed, nothing can be compared: {event.reason} (see {where})")
        if isinstance(event, Failed):
            self._job.progress.done(f"{title} failed: {event.reason} (see {where})")
        elif isinstance(event, Retried):
            self._job.progress.note(f"{title} failed and is tried again: {event.reason}")
        elif isinstance(event, Finished):
            values = objective.values(event.result, self._objectives)
            if name not in self._known:
                named = dict(zip(self._objectives, values, strict=True))
                self._job.progress.done(told(title, named, event.result.wall_seconds))


def _teaching(job: Job) -> tuple[str, ...]:
    """Overrides that name the teacher, network, weights and outputs, so that the study file says it once."""
    if job.spec.teacher is None:
        return ()
    place = job.runs.place("teacher-0").resolve()
    network = f"++teacher.model={space.written(Result.load(place).config['model'])}"
    known = {"teacher.weights": place / "weights.pt"}
    if not any(override.lstrip("+").startswith("teacher.outputs=") for override in job.spec.base):
        known["teacher.outputs"] = place / "outputs"
    return (network, *space.overrides(known))


def search(job: Job, checked: check.Checked, teaching: tuple[str, ...]) -> None:
    """Draw and run trials until the study's budget is spent."""
    study = record.open_study(job.folder, job.spec)
    study.enqueue([*job.spec.enqueue, *checked.warm])
    plan = Plan(job.spec, checked.space, teaching, checked.horizon, checked.rungs)
    source = Search(plan, study, job.runs, job.ledger, job.progress)
    drive(job, _Mirrored(job, source))
    source.close()


@final
class _Mirrored:
    """A search whose front is shown in W&B as it moves."""

    def __init__(self, job: Job, search: Search) -> None:
        self._job, self._search, self._due = job, search, time.monotonic() + _REFRESH
        self.next = search.next

    def on(self, event: Event) -> None:
        self._search.on(event)
        began = time.monotonic()
        if isinstance(event, Finished) and began > self._due:
            with suppress(ValueError):  # no trial has finished that keeps to the constraints
                self._job.mirror.refresh(record.collect(self._job.folder))
            now = time.monotonic()
            self._due = now + max(_REFRESH, 50 * (now - began))  # all results are read again: workers must not wait


def confirm(job: Job, found: StudyRecord, teaching: Sequence[str]) -> None:
    """Train front points and dense baselines again on fresh seeds; what was selected stays selected.

    Only the quality is looked at: a latency does not depend on the seed.
    """
    recipes = [(point, (*teaching, *space.overrides(point.params))) for point in found.front]
    recipes += [(point, (*job.spec.dense, *job.spec.baselines[point.name])) for point in found.baselines]
    titled = [
        (f"{point.name}, seed {seed}", _again(job.spec, point, (*recipe, f"seed={seed}"), seed))
        for point, recipe in recipes
        for seed in job.spec.confirm_seeds
    ]
    drive(job, _Listed(job, titled, [job.spec.quality], needed=False))


def _again(spec: StudySpec, point: Point, overrides: tuple[str, ...], seed: int) -> Run:
    from_dense = spec.start_dense and point.kind == "trial"
    return Run("confirm", f"{point.run}-{seed}", overrides, timed=False, from_dense=from_dense)


def measure(job: Job, found: StudyRecord) -> None:
    """Measure what a table gave the latency of, on the table's device: a column beside the predictions."""
    job.progress.begin("latencies")
    for point in (*found.front, *found.baselines):
        if any(one.device == point.result.cost["device"] for one in point.elsewhere):
            continue
        taken = _done(job, job.runs.timing_priced(point.run), f"{point.name} could not be timed")
        if taken is None:
            job.progress.note("the latency table is of another device: measure there, with the folder that pick writes")
            return
        known = {field.name: taken[field.name] for field in fields(elsewhere.Elsewhere) if field.name in taken}
        kernels = "float" if "float kernels" in taken["runtime"] else "integer"
        elsewhere.keep(job.folder, elsewhere.Elsewhere(**known, kernels=kernels, run=point.run))


def test(job: Job, found: StudyRecord) -> None:
    """Read the test split once for each point that is shown."""
    job.progress.begin("test split")
    for point in (*found.front, *found.baselines):
        if not (job.runs.place(point.run) / traffic.TEST).exists():
            _done(job, job.runs.testing(point.run), f"the test split could not be read for {point.name}")


def _done(job: Job, work: launched.Job, failed: str) -> Any:
    """What a job gives, once it is done."""
    handle = job.pool.launcher.submit(work)
    while (outcome := handle.poll()) is None:
        time.sleep(_PAUSE)
    if outcome.cause != "done":
        raise ValueError(f"{failed}: {outcome.detail} (see {work.folder})")
    return outcome.value
