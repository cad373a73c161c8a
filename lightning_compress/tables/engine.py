"""The runs behind a table: which are missing, run on a launcher, each recorded as it ends.

Nothing else is kept of how far a table is: a run is done when it has a record, and goes on from the checkpoint in its
folder.
"""

import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_compress.core.strict_yaml import unknown
from lightning_compress.launch.drain import ends
from lightning_compress.launch.job import Job, Launcher, Outcome, Resources
from lightning_compress.run import identity
from lightning_compress.run.result import FILE, Result
from lightning_compress.tables import records
from lightning_compress.tables.records import Record
from lightning_compress.tables.schema import Row, Spec
from lightning_compress.tracking.provenance import provenance

FOLDER = Path("runs/tables")
_TARGET = "lightning_compress.run.worker:whole"
#: In the folder of a run that is to be trained once more, until it has its new record.
_AGAIN = "again"
#: How often a run that was stopped from outside goes on at once.
_RETRIES = {"crash": 1, "preempted": 10}
#: Errors of what a run needs, not of the run: no record is made of them.
_NOT_THE_RUNS = ("FileNotFoundError", "PermissionError", "ConnectionError", "TimeoutError", "ConfigError")
#: Keys of a configuration, and of its trainer, that do not decide what is trained.
_FREE = ("wandb", "speed", "checkpoint_every")
_FREE_OF_TRAINER = ("accelerator", "devices", "strategy")

Records = Mapping[str, Mapping[int, Record]]


@final
@dataclass(frozen=True)
class Asked:
    """What of a table is to be run: the rows `only`, their `seeds`, those that have a record `again` too.

    `overrides` come after the table's own, and may say where and how fast runs are trained, not what.
    """

    only: Sequence[str] = ()
    seeds: Sequence[int] = ()
    again: bool = False
    overrides: Sequence[str] = ()


@final
@dataclass(frozen=True)
class Place:
    """Where runs and records go, how overrides become a configuration, who is told what happens, if there is a GPU."""

    compose: Callable[[Sequence[str]], dict[str, Any]]
    say: Callable[[str], object]
    gpu: bool = False
    runs: Path = FOLDER
    records: Path = records.FOLDER


@final
@dataclass(frozen=True)
class Due:
    """A run that is missing.

    >>> Due(Row("dense", "", "", "mnist/lenet5_dense", (), (3,), "cpu", None, None, None, {}), 3).name
    'dense-seed3'
    """

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """What it is called among the runs of its table."""
        return f"{self.row.name}-seed{self.seed}"


@final
@dataclass(frozen=True)
class Plan:
    """What is to be run, the rows `left_out` and why, and the runs with a record: those that ended well, and others.

    `lent` are run too, with or without a record, which then stays: those that are due read their files.
    """

    due: Sequence[Due]
    left_out: Mapping[str, str]
    recorded: Sequence[Due]
    failed: Sequence[Due]
    lent: Sequence[Due] = ()

    def lines(self) -> list[str]:
        """The plan in words."""
        said = [f"{len(self.due)} to run, {len(self.recorded)} recorded, {len(self.failed)} failed"]
        for name, count in Counter(one.row.name for one in self.due).items():
            needs = next(one.row.needs for one in self.due if one.row.name == name)
            said.append(f"to run: {name}, {count} seeds{', on a GPU' if needs == 'gpu' else ''}")
        said += [f"to run: {one.name}, whose files others read; its record stays" for one in self.lent]
        if self.failed:
            said.append(f"failed, run again with --again: {', '.join(one.name for one in self.failed)}")
        return said + [f"left out: {name}: {why}" for name, why in self.left_out.items()]


def plan(spec: Spec, found: Records, asked: Asked, *, gpu: bool = False, runs: Path = FOLDER) -> Plan:
    """What of the table is to be run, given the records and the `runs` there are and whether there is a `gpu`.

    Raises:
        ValueError: a row or a seed that was asked for is not in the table.
    """
    rows = [row for row in spec.rows.values() if row.experiment is not None]
    named = {_with_runs(spec, name) for name in asked.only}
    rows = [row for row in rows if not named or row.name in named]
    seeds = [seed for seed in asked.seeds if not any(seed in row.seeds for row in rows)]
    if seeds:
        raise ValueError(f"table {spec.name}: none of the rows has seed {seeds[0]}; they have {_seeds(rows)}")
    left_out = {row.name: why for row in rows if (why := _unable(row, gpu=gpu, named=row.name in named)) is not None}
    every = [Due(row, seed) for row in rows for seed in row.seeds if not asked.seeds or seed in asked.seeds]
    wanted = [(one, found.get(one.row.name, {}).get(one.seed)) for one in every]
    kept = [(one, record) for one, record in wanted if record and (not asked.again or one.row.name in left_out)]
    missing = [one for one, record in wanted if asked.again or not record]
    due = [one for one in missing if one.row.name not in left_out]
    firsts = {name: Due(spec.rows[name], spec.rows[name].seeds[0]) for one in due if (name := one.row.after)}
    return Plan(
        due,
        {one.row.name: left_out[one.row.name] for one in missing if one.row.name in left_out},
        [one for one, record in kept if record.status == "done"],
        [one for one, record in kept if record.status != "done"],
        [one for one in firsts.values() if one not in due and not (_folder(spec, one, runs) / FILE).exists()],
    )


def _with_runs(spec: Spec, name: str) -> str:
    """The row with the runs of the row `name`."""
    if name not in spec.rows:
        raise ValueError(f"table {spec.name}: row {unknown(name, spec.rows, 'the rows')}")
    found = spec.rows[name].runs_of or name
    if spec.rows[found].experiment is None:
        raise ValueError(f"table {spec.name}: row {name!r} is cited, there is nothing to run")
    return found


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(map(str, sorted({seed for row in rows for seed in row.seeds}))) or "none"


def _unable(row: Row, *, gpu: bool, named: bool) -> str | None:
    """Why a row cannot be run here, or is not without its name being given."""
    if row.needs == "gpu" and not gpu:
        return "it needs a GPU, and there is none"
    if row.needs == "data" and not named:
        return f"it needs data that does not come by itself; with the data, --only {row.name}"
    return None


def run(spec: Spec, planned: Plan, asked: Asked, launcher: Launcher, place: Place) -> list[str]:
    """Run what is due, record each run as it ends, and return the names of those that gave no number.

    A run that fails stops no other one; what is stopped goes on with the same call. The launcher is closed in the end.

    Raises:
        ValueError: the code is not committed, so that nothing could be recorded, or a run cannot be as it is written;
            nothing was trained then.
        OSError: no room is left on the disk.
    """
    due = planned.due
    with closing(launcher):
        reason = records.uncommitted(provenance())
        if due and reason is not None:
            raise ValueError(f"table {spec.name}: nothing is run, as nothing could be recorded: {reason}")
        configs = {one.name: _config(spec, one, asked, place) for one in (*planned.lent, *due)}
        if asked.again:
            due = _once_more(spec, due, place)
        everything = [*planned.lent, *due]
        first = {one.row.after for one in due}
        lost: list[str] = []
        for early in (True, False):
            stage = [one for one in everything if (one.row.name in first) == early]
            lost += _run_all(spec, stage, configs, launcher, place, planned.lent)
    return lost


def _run_all(
    spec: Spec,
    stage: Sequence[Due],
    configs: Mapping[str, dict[str, Any]],
    launcher: Launcher,
    place: Place,
    lent: Sequence[Due],
) -> list[str]:
    """Run some at once, as many as there is room for; the names of those that gave no number."""
    jobs = deque(_job(one, configs[one.name], _folder(spec, one, place.runs), place) for one in stage)
    known, tries, lost, number = {one.name: one for one in stage}, Counter[str](), list[str](), 0
    for job, outcome in ends(jobs, launcher):
        tries[f"{job.name} {outcome.cause}"] += 1
        if tries[f"{job.name} {outcome.cause}"] <= _RETRIES.get(outcome.cause, 0):
            place.say(f"{job.name}: {outcome.cause}, {outcome.detail}; it goes on")
            jobs.append(job)
            continue
        if known[job.name] in lent:
            wrong = None if outcome.cause == "done" else f"not run: {outcome.detail}"
        else:
            wrong = _keep(spec, known[job.name], job, outcome, place)
        number += 1
        lost += [job.name] if wrong else []
        place.say(f"[{number}/{len(stage)}] {job.name}: {wrong or 'done'}")
    return lost


def overrides(spec: Spec, row: Row) -> list[str]:
    """The overrides of a row's runs, but for the seed and where they are logged."""
    return [f"experiment={row.experiment}", *spec.overrides, *row.overrides]


def _config(spec: Spec, one: Due, asked: Asked, place: Place) -> dict[str, Any]:
    home = place.runs / spec.name
    own = [
        f"seed={one.seed}",
        f"wandb.group={spec.name}",
        f"wandb.name={one.name}",
        f"wandb.folder='{home.resolve()}'",
        f"teacher.folder='{(home / 'teachers').resolve()}'",
    ]
    written = place.compose([*overrides(spec, one.row), *own])
    if not asked.overrides:
        return written
    config = place.compose([*overrides(spec, one.row), *own, *asked.overrides])
    changed = [key for key in config if _deciding(key, config[key]) != _deciding(key, written[key])]
    if changed:
        raise ValueError(
            f"{one.name}: {' '.join(asked.overrides)} changes {', '.join(changed)}, and a record is of the row as its "
            f"table has it: write that there, or `lightning-compress train experiment={one.row.experiment}`"
        )
    return config


def _deciding(key: str, value: Any) -> Any:
    if key == "trainer":
        return {name: inner for name, inner in value.items() if name not in _FREE_OF_TRAINER}
    return None if key in _FREE else identity.deciding(key, value)


def _folder(spec: Spec, one: Due, runs: Path) -> Path:
    return runs / spec.name / one.row.name / f"seed{one.seed}"


def _job(one: Due, config: dict[str, Any], folder: Path, place: Place) -> Job:
    measured = config["measure"]
    wants = Resources(
        devices=1.0 if place.gpu and one.row.needs != "cpu" else 0.0,
        cores=config["speed"]["threads"] or 1,
        exclusive=measured["latency"] and not measured["table"],  # it ends with a timing
    )
    return Job(one.name, _TARGET, {"config": config, "folder": str(folder.resolve())}, folder, wants)


def _once_more(spec: Spec, due: Sequence[Due], place: Place) -> Sequence[Due]:
    """Make place for runs that begin anew; only those that are left, where that was stopped before."""
    left = [one for one in due if (_folder(spec, one, place.runs) / _AGAIN).exists()]
    if left:
        place.say(f"running again was stopped before; {len(left)} are left of it")
        return left
    for one in due:
        folder = _folder(spec, one, place.runs)
        if folder.exists():
            previous = folder.with_name(f"{folder.name}.previous")
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        folder.mkdir(parents=True)
        (folder / _AGAIN).touch()
    return due


def _keep(spec: Spec, one: Due, job: Job, outcome: Outcome, place: Place) -> str | None:
    """Record how a run ended; what is wrong with it, if anything."""
    if outcome.cause == "disk":
        raise OSError(f"{job.name}: {outcome.detail}: make room, then write the same command again; nothing is lost")
    if outcome.cause == "done":
        try:
            records.write(place.records, spec.name, one.row.name, Result.load(job.folder))
        except ValueError as error:
            return f"not recorded: {error}; then --only {one.row.name} --again"
    elif outcome.cause in ("preempted", "cancelled") or outcome.detail.partition(":")[0] in _NOT_THE_RUNS:
        return f"not run: {outcome.detail}; the same command goes on"
    else:
        config = job.arguments["config"]
        records.write_failure(place.records, spec.name, one.row.name, one.seed, config, outcome.detail)
    (job.folder / _AGAIN).unlink(missing_ok=True)
    return None if outcome.cause == "done" else f"failed: {outcome.detail}"
