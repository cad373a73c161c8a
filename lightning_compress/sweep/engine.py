"""The whole sweep: dense baselines, teacher, trials, fresh seeds, the test split, the report.

One process drives: it alone asks and tells the study, and it writes down what happens before it acts on it. Every step
skips what is finished, so the same call goes on where an earlier one was stopped or killed.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from lightning_compress.core.files import write_json
from lightning_compress.launch.job import Launcher
from lightning_compress.sweep import check, control, record, report, steps
from lightning_compress.sweep.ledger import Ledger
from lightning_compress.sweep.pool import Pool, names_full_disk
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.publish import StudyRun, study_labels
from lightning_compress.sweep.record import StudyRecord
from lightning_compress.sweep.runs import Runs, Tools
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.store import JOURNAL
from lightning_compress.tracking.wandb import choose_mode


def sweep(
    spec: StudySpec, tools: Tools, launcher: Launcher, *, folder: Path, progress: Progress, fresh: bool = False
) -> StudyRecord:
    """Run the study kept in `folder` on `launcher`, or what is left of it, and write its report.

    `fresh` begins anew; the study that was there is kept as `<folder>.previous`. The launcher is closed in the end.

    Raises:
        ValueError: the study cannot be run as written, or `folder` holds something else (nothing was trained then);
            or the teacher or a dense baseline failed, so that there is nothing to compare with.
        Stopped: the study was asked to stop.
        DiskFullError: there is no room to go on.
    """
    with closing(launcher), names_full_disk(folder):
        plan = check.check(spec, tools)
        report_folder = Path(spec.report)
        report_folder.mkdir(parents=True, exist_ok=True)
        with _claim(folder):
            identity = _begin(folder, spec, fresh)
            wandb = tools.compose(spec.base)["wandb"]
            mode = choose_mode(folder, wandb["mode"])
            made = Runs(folder, spec=spec, identity=identity, tools=tools, wandb_mode=mode.name)
            labels = study_labels(spec, identity, wandb["project"])
            with progress, StudyRun(labels, spec, folder, mode.name) as mirror:
                ledger = Ledger(folder)
                pool = Pool(launcher, made, ledger, spec.launching.retries)
                job = steps.Job(spec, folder, made, ledger, pool, control.Words(folder), progress, mirror)
                progress.note(mode.sentence)
                found = _steps(job, plan, report_folder)
            progress.finish(found)
    return found


def _steps(job: steps.Job, plan: check.Checked, report_folder: Path) -> StudyRecord:
    ended = sum(trial.state != "running" for trial in record.trials(job.folder))
    job.progress.expect(max(0, job.spec.trials - ended))
    if (job.folder / JOURNAL).exists():
        record.open_study(job.folder, job.spec)  # raises before anything is trained if it is damaged
    teaching = steps.dense(job)
    steps.search(job, plan, teaching)
    selected = record.collect(job.folder)
    steps.confirm(job, selected, teaching)
    if job.runs.priced:
        steps.measure(job, selected)
    if job.spec.test:
        steps.test(job, selected)
    found = record.collect(job.folder)
    job.progress.begin("report")
    report.write(found, job.folder, report_folder)
    job.mirror.finish(found)
    return found


@contextmanager
def _claim(folder: Path) -> Iterator[None]:
    """Hold the study for this process alone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with control.lock(folder):
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
            spec.continues(earlier, trials_exist=bool(record.trials(folder)))
    data = {"schema": 1, "identity": identity, "created": created, "spec": spec.asdict()}
    write_json(folder / record.FILE, data, sort_keys=False)  # the first objective is the quality
    return identity


def _set_aside(folder: Path) -> None:
    previous = folder.with_name(f"{folder.name}.previous")
    if previous.exists():
        if not (previous / record.FILE).exists():
            raise ValueError(f"{previous} is in the way and holds no study: move it yourself")
        shutil.rmtree(previous)
    folder.rename(previous)
