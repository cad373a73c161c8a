"""Runs in flight: each is trained, then timed alone, tried again where that may help, and reported as events.

Driver and workers speak through files in a run's folder (`run/traffic.py`), so that every launcher looks the same and a
restarted driver finds what was done.
"""

import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from lightning_compress.launch import call
from lightning_compress.launch.job import Handle, Job, Launcher, Outcome, Resources
from lightning_compress.run import traffic
from lightning_compress.run.result import FILE, Result
from lightning_compress.sweep import ledger, runs
from lightning_compress.sweep.ledger import Ledger
from lightning_compress.sweep.runs import Run, Runs

_LEAST_DISK = 100e6
_MOST_INTERRUPTIONS = 20
_MAKE_ROOM = "make room, then write the same command again; nothing finished is lost"


class DiskFullError(OSError):
    """There is no room to go on; nothing finished is lost."""


@contextmanager
def names_full_disk(folder: Path) -> Iterator[None]:
    """Whatever found no room in this block, the ledger of the study in `folder` says so, and what to do is said.

    Raises:
        DiskFullError: there was no room.
    """
    try:
        yield
    except OSError as error:
        full = isinstance(error, DiskFullError)
        if not full and call.classify(error) != "disk":
            raise
        if (folder / ledger.FILE).exists():
            with suppress(OSError):
                Ledger(folder).append("stop", cause="disk", detail=str(error))
        if full:
            raise
        raise DiskFullError(f"no room is left for the study in {folder} ({error}): {_MAKE_ROOM}") from error


@final
@dataclass(frozen=True)
class Rung:
    """A run has come to a rung; it waits for a verdict, at most as long as its launcher's patience."""

    run: Run
    epoch: int
    result: Result


@final
@dataclass(frozen=True)
class Paused:
    """A run was paused after `epoch` and timed; it can go on from its checkpoint."""

    run: Run
    epoch: int
    result: Result


@final
@dataclass(frozen=True)
class Finished:
    """A run is trained in full and timed."""

    run: Run
    result: Result


@final
@dataclass(frozen=True)
class Retried:
    """A run failed and is tried again: one line says why."""

    run: Run
    reason: str


@final
@dataclass(frozen=True)
class Failed:
    """A run failed, for good: one line says why."""

    run: Run
    reason: str


Event = Rung | Paused | Finished | Retried | Failed


@final
@dataclass
class _Flight:
    run: Run
    handle: Handle | None = None
    timing: str | None = None  # the record that is being timed, or waits to be
    epoch: int | None = None  # where the run was paused, if it was
    reported: set[int] = field(default_factory=set)


@final
class Pool:
    """Starts runs on a launcher and says what became of them."""

    def __init__(self, launcher: Launcher, made: Runs, ledger: Ledger, retries: dict[str, int]) -> None:
        self.launcher, self._runs, self._ledger, self._retries = launcher, made, ledger, retries
        self._flights: dict[str, _Flight] = {}
        self._due: deque[_Flight] = deque()  # trained, not yet being timed

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits to be timed."""
        return not self._flights

    def has_room(self, resources: Resources) -> bool:
        """Whether a run started now would begin at once; timings that wait go first.

        Without workers beside the driver runs go strictly one after another: their order must not depend on restarts.
        """
        if self.launcher.patience == 0 and self._flights:
            return False
        return not self._due and self.launcher.has_room(resources)

    def start(self, run: Run) -> None:
        """Train a run, go on with it where it was stopped, or report it again where it is finished.

        Raises:
            DiskFullError: there is no room for it.
        """
        flight = _Flight(run, reported={e["epoch"] for e in self._ledger.of("rung", run=run.name)})
        self._flights[run.name] = flight
        if runs.finished(self._runs.place(run.name)) is not None:
            self._time(flight, FILE)
            return
        if len(_interruptions(self._ledger, run.name)) > _MOST_INTERRUPTIONS:
            flight.handle = _Ended(Outcome("error", f"interrupted {_MOST_INTERRUPTIONS} times without getting further"))
            return
        self._train(flight)

    def poll(self) -> list[Event]:
        """What happened since the last call."""
        events: list[Event] = []
        for flight in list(self._flights.values()):
            if flight.timing is None:
                events += self._rungs(flight)
                self._go_on(flight)
            if flight.handle is not None and (outcome := flight.handle.poll()) is not None:
                flight.handle = None
                events += self._rungs(flight) if flight.timing is None else []
                events += self._ended(flight, outcome)
        self._time_next()
        return events

    def _train(self, flight: _Flight) -> None:
        self._submit(flight, self._runs.training(flight.run, self.launcher.patience))

    def _submit(self, flight: _Flight, job: Job) -> None:
        folder = self._runs.place(flight.run.name)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < _LEAST_DISK:
            raise DiskFullError(
                f"{free / 1e6:.0f} MB of disk are left for {folder}, a run needs {_LEAST_DISK / 1e6:.0f}: {_MAKE_ROOM}"
            )
        entry = {"run": flight.run.name, "stage": "timing" if flight.timing else "training"}
        self._ledger.append("start", **entry, wandb=self._runs.wandb_id(flight.run))
        flight.handle = self.launcher.submit(job)

    def _rungs(self, flight: _Flight) -> list[Event]:
        """Rungs that the run has come to since it was looked at last, in order."""
        found: list[Event] = []
        folder = self._runs.place(flight.run.name)
        for epoch in flight.run.rungs:
            if epoch not in flight.reported and (folder / traffic.rung_file(epoch)).exists():
                flight.reported.add(epoch)
                found.append(Rung(flight.run, epoch, Result.load(folder, traffic.rung_file(epoch))))
        return found

    def _ended(self, flight: _Flight, outcome: Outcome) -> list[Event]:
        if outcome.cause == "disk":
            self._ledger.append("exit", run=flight.run.name, cause="disk", detail=outcome.detail)
            raise DiskFullError(f"{flight.run.name}: {outcome.detail}: {_MAKE_ROOM}")
        if outcome.cause != "done":
            return self._failed(flight, outcome)
        self._ledger.append("exit", run=flight.run.name, cause="done")
        if flight.timing is not None:
            return [self._complete(flight)]
        ended: dict[str, Any] = outcome.value
        if ended["status"] == "paused":
            flight.epoch = ended["epoch"]
        else:
            self._time(flight, FILE)
        return []

    def _go_on(self, flight: _Flight) -> None:
        """Train on, or time what there is, as soon as the run that stands on a rung has its verdict."""
        if flight.epoch is None:
            return
        verdict = traffic.verdict(self._runs.place(flight.run.name), flight.epoch)
        if verdict is True:
            flight.epoch = None
            self._train(flight)
        elif verdict is False:
            self._time(flight, traffic.rung_file(flight.epoch))

    def _time(self, flight: _Flight, record: str) -> None:
        """Queue the timing of what a run exported, unless it is not wanted or was done."""
        flight.timing = record
        result = Result.load(self._runs.place(flight.run.name), record)
        if not flight.run.timed or "latency_ms" in result.cost:
            flight.handle = _Ended(Outcome("done"))
        else:
            self._due.append(flight)

    def _time_next(self) -> None:
        while self._due:
            flight = self._due[0]
            assert flight.timing is not None, "what is due has a record to be timed"
            job = self._runs.timing(flight.run.name, flight.timing)
            reference = job.arguments["reference"]
            if reference is not None and not (Path(reference).parent / FILE).exists():
                return
            if not self.launcher.has_room(job.resources):
                return
            self._due.popleft()
            self._submit(flight, job)

    def _complete(self, flight: _Flight) -> Event:
        assert flight.timing is not None, "only what was timed is complete"
        del self._flights[flight.run.name]
        result = Result.load(self._runs.place(flight.run.name), flight.timing)
        if flight.epoch is not None:
            return Paused(flight.run, flight.epoch, result)
        return Finished(flight.run, result)

    def _failed(self, flight: _Flight, outcome: Outcome) -> list[Event]:
        name, cause = flight.run.name, outcome.cause
        before = sum(1 for _ in self._ledger.of("exit", run=name, cause=cause))
        again = before < self._retries.get(cause, 0)
        self._ledger.append("exit", run=name, cause=cause, detail=outcome.detail, retry=again)
        reason = f"{cause}: {outcome.detail}" if cause != "error" else outcome.detail
        if not again:
            del self._flights[name]
            return [Failed(flight.run, reason)]
        if flight.timing is not None:
            self._due.append(flight)
        else:
            self._train(flight)
        return [Retried(flight.run, reason)]


@final
@dataclass(frozen=True)
class _Ended:
    """Stands in for a job that needs no running."""

    outcome: Outcome
    id: str = ""

    def poll(self) -> Outcome:
        return self.outcome

    def cancel(self) -> None:
        pass


def _interruptions(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    """Starts of a run since it last got anywhere: its driver ended before it did."""
    starts: list[dict[str, Any]] = []
    for event in ledger.events:
        if event.get("run") == name:
            starts = [*starts, event] if event["event"] == "start" else []
    return starts
