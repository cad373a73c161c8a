"""The trials of a study: which one runs next, which one stops, and what the sampler is told; each is told once.

Trials are compared at rungs by the stopping rule. One that does not go on is paused: it keeps its checkpoint, and is
promoted when it ranks high enough later. When all trials are drawn, those that no finished one beats are finished too.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import final

from lightning_compress.run import traffic
from lightning_compress.run.result import Result
from lightning_compress.sweep import ledger, objective, space
from lightning_compress.sweep.foresight import ranked
from lightning_compress.sweep.ledger import Ledger
from lightning_compress.sweep.pool import Event, Failed, Finished, Paused, Retried, Rung
from lightning_compress.sweep.progress import Progress, told
from lightning_compress.sweep.rungs import Rule
from lightning_compress.sweep.runs import Run, Runs
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.store import JOURNAL
from lightning_compress.sweep.study import Study, Trial


@final
@dataclass(frozen=True)
class Plan:
    """What all trials share: `shared` overrides (the teacher), epochs of a full training, rungs."""

    spec: StudySpec
    space: space.Space
    shared: tuple[str, ...]
    horizon: int
    rungs: tuple[int, ...]


@final
@dataclass
class _Known:
    """Trials that are not told yet."""

    resume: deque[int] = field(default_factory=deque)
    paused: dict[int, int] = field(default_factory=dict)  # trial to the epoch it waits at
    seen: dict[int, tuple[float, ...]] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)  # trained, or given to it to train
    doomed: dict[int, str] = field(default_factory=dict)  # breaks a constraint whatever its training brings


@final
class Search:
    """Draws, resumes, promotes and stops the trials of one study; a source of runs for `drive`."""

    def __init__(self, plan: Plan, study: Study, made: Runs, book: Ledger, progress: Progress) -> None:
        self._plan, self._study, self._runs, self._ledger, self._progress = plan, study, made, book, progress
        self._spec = plan.spec
        self._directions = list(self._spec.objectives.values())
        self._names = ranked(self._spec)
        fidelity = self._spec.stopping
        self._rule: Rule | None = None
        if fidelity is not None:
            directions = [self._spec.objectives[name] for name in self._names]
            self._rule = Rule(plan.rungs, directions, eta=fidelity.eta, ranking=fidelity.ranking)
        self._known = _Known()
        self._shown: set[int] = set()
        self._replay()

    def next(self) -> Run | None:
        """The run to start now; None while there is none, and for good when nothing runs either."""
        if self._known.resume:
            return self._run(self._known.resume.popleft())
        if not self._affordable():
            return None
        promoted = self._promote()
        if promoted is not None:
            return promoted
        while self._study.num_spent < self._spec.trials:
            trial = self._study.ask(self._plan.space, self._known.seen)
            self._ledger.append("ask", trial=trial.number, params=trial.params)
            if trial.state == "running":
                return self._run(trial.number)
            self._end(trial)
            self._progress.done(
                f"trial {trial.number}: same parameters as trial {trial.repeats}, whose result it shares"
            )
        return self._finish_front()

    def on(self, event: Event) -> None:
        """Act on what happened to a trial."""
        number = int(event.run.label)
        match event:
            case Rung():
                self._judge(number, event.epoch, event.result)
            case Paused():
                self._pause(number, event.epoch, event.result)
            case Finished():
                self._tell(number, event.result)
            case Retried():
                self._progress.note(f"trial {number} failed and is tried again: {event.reason}")
            case Failed():
                self._fail(number, event.reason)

    def close(self) -> None:
        """Tell the study of the trials that stay paused: stopped, with the point they reached."""
        for number in sorted(self._known.paused):
            self._stop(number, self._known.paused[number], self._known.seen[number], "")
        self._known.paused.clear()

    def _run(self, number: int) -> Run:
        trial = self._study.trial(number)
        at = max((e["epoch"] for e in self._ledger.of("rung", run=f"trial-{number}")), default=0)
        self._known.epochs[number] = self._following(at)
        overrides = (*self._plan.shared, *space.overrides(trial.params))
        return Run("trial", str(number), overrides, self._plan.rungs, from_dense=self._spec.start_dense)

    def _following(self, epoch: int) -> int:
        return next((rung for rung in self._plan.rungs if rung > epoch), self._plan.horizon)

    def _affordable(self) -> bool:
        budget = self._spec.trainings
        return budget is None or sum(self._known.epochs.values()) < budget * self._plan.horizon

    def _judge(self, number: int, epoch: int, result: Result) -> None:
        """Decide at a rung whether a trial goes on, write it down, and tell its worker."""
        costs = [name for name in result.numbers if name.startswith("cost/")]
        broken = [key for key, by in self._spec.violations(result.numbers, known=costs).items() if by > 0]
        if broken:
            self._known.doomed[number] = f"breaks {', '.join(broken)}"
        values = self._compared(result)
        assert self._rule is not None, "runs come to rungs only under a rule"
        go = not broken and self._rule.report(number, epoch, values)
        entry = {"run": f"trial-{number}", "trial": number, "epoch": epoch}
        self._ledger.append("rung", **entry, values=values, go=go, broken=broken)
        traffic.decide(self._runs.place(f"trial-{number}"), epoch, go)
        if all(name in result.numbers for name in self._spec.objectives):
            self._known.seen[number] = objective.values(result, self._spec.objectives)
        if go:
            self._known.epochs[number] = self._following(epoch)

    def _compared(self, result: Result) -> list[float]:
        """The numbers that trials are compared by at a rung, in the order of the objectives they stand for."""
        fidelity = self._spec.stopping
        proxies = {} if fidelity is None else fidelity.proxies
        known = result.numbers
        return [known[name] if name in known else known[proxies[name]] for name in self._names]

    def _pause(self, number: int, epoch: int, result: Result) -> None:
        values = objective.values(result, self._spec.objectives)
        title = f"trial {number}, {epoch} of {self._plan.horizon} epochs"
        self._report(number, told(title, dict(zip(self._spec.objectives, values, strict=True)), result.wall_seconds))
        if number in self._known.doomed:
            self._stop(number, epoch, values, self._known.doomed.pop(number))
            return
        self._known.paused[number], self._known.seen[number] = epoch, values
        self._known.epochs[number] = epoch

    def _promote(self) -> Run | None:
        """A paused trial that now ranks high enough at its rung."""
        if self._rule is None:
            return None
        for number, level in self._rule.promotable():
            if self._known.paused.get(number) == level:
                return self._go_on(number)
        return None

    def _finish_front(self) -> Run | None:
        """A paused trial that no trial trained in full beats: a front is made of finished ones only."""
        full = [trial.values or () for trial in self._study.trials() if trial.state == "done" and trial.feasible]
        best = [full[index] for index in objective.front(full, self._directions)]  # they beat whatever any of all beats
        for number in sorted(self._known.paused):
            values = self._known.seen[number]
            if not any(objective.dominates(other, values, self._directions) for other in best):
                return self._go_on(number)
        return None

    def _go_on(self, number: int) -> Run:
        epoch = self._known.paused.pop(number)
        if self._rule is not None:
            self._rule.promoted(number, epoch)
        self._ledger.append("promote", run=f"trial-{number}", trial=number, epoch=epoch)
        traffic.decide(self._runs.place(f"trial-{number}"), epoch, True)
        return self._run(number)

    def _tell(self, number: int, result: Result) -> None:
        try:
            values = objective.values(result, self._spec.objectives)
            violations = self._spec.violations(result.numbers)
        except ValueError as error:
            self._fail(number, str(error))
            return
        trial = self._study.tell(number, values, violations=violations)
        self._end(trial)
        if trial.values is None:
            self._say_failed(trial)
            return
        broken = "" if trial.feasible else ", breaks a constraint"
        named = dict(zip(self._spec.objectives, trial.values, strict=True))
        self._report(number, told(f"trial {number}", named, result.wall_seconds) + broken)

    def _stop(self, number: int, epoch: int, values: tuple[float, ...], reason: str) -> None:
        result = Result.load(self._runs.place(f"trial-{number}"), traffic.rung_file(epoch))
        violations = self._spec.violations(result.numbers)
        self._end(self._study.stop(number, values, epochs=epoch, violations=violations, reason=reason))

    def _fail(self, number: int, reason: str) -> None:
        trial = self._study.fail(number, reason)
        self._end(trial)
        self._say_failed(trial)

    def _say_failed(self, trial: Trial) -> None:
        where = self._runs.place(f"trial-{trial.number}")
        self._report(trial.number, f"trial {trial.number} failed: {trial.reason} (see {where})")

    def _end(self, trial: Trial) -> None:
        self._known.seen.pop(trial.number, None)
        if trial.repeats is None:
            self._known.epochs[trial.number] = trial.epochs or self._plan.horizon
        kept = {"values": trial.values, "reason": trial.reason, "violations": trial.violations}
        self._ledger.append("end", trial=trial.number, state=trial.state, repeats=trial.repeats, **kept)

    def _report(self, number: int, line: str) -> None:
        """Show how trials stand; a trial counts once, however often it is promoted."""
        trials = self._study.trials()
        done = [trial for trial in trials if trial.state == "done" and trial.feasible]
        best = objective.front([trial.values or () for trial in done], self._directions)
        rows = [
            (f"trial {done[i].number}", dict(zip(self._spec.objectives, done[i].values or (), strict=True)))
            for i in best
        ]
        rows.sort(key=lambda row: row[1][self._spec.quality], reverse=self._directions[0] == "max")
        counts = {state: sum(trial.state == state for trial in trials) for state in ("done", "stopped", "failed")}
        counts["stopped"] += len(self._known.paused)
        self._progress.state(counts, rows)
        if number in self._shown:
            self._progress.note(line)
        else:
            self._shown.add(number)
            self._progress.done(line)

    def _replay(self) -> None:
        """Bring rule and queues to where an earlier driver left them, and the ledger up to date with the study."""
        self._check()
        waits: dict[int, int] = {}
        for event in self._ledger.events:
            if event["event"] == "rung":
                self._replay_rung(event)
                waits[event["trial"]] = event["epoch"]
            elif event["event"] == "promote" and self._rule is not None:
                self._rule.promoted(event["trial"], event["epoch"])
            if event["event"] == "promote" or event.get("go"):
                waits.pop(event["trial"], None)
        self._catch_up(waits)

    def _check(self) -> None:
        """Whatever the ledger knows was written to the study before."""
        kept = {trial.number: trial.state for trial in self._study.trials(repeats=True)}
        for event in self._ledger.events:
            number, state = event.get("trial"), event.get("state")
            if number is not None and (number not in kept or state not in (None, kept[number])):
                where = "its database" if self._spec.storage else self._ledger.path.with_name(JOURNAL)
                raise ValueError(
                    f"{where} has lost what it knew of trial {number}, which {self._ledger.path} says is "
                    f"{state or 'drawn'}: put back a copy, or write --fresh to begin the study anew"
                )

    def _catch_up(self, waits: dict[int, int]) -> None:
        asked = {event["trial"] for event in self._ledger.of("ask")}
        ended = {event["trial"] for event in self._ledger.of("end")}
        for trial in self._study.trials(repeats=True):
            # The process may have ended between the study's record and the ledger's.
            if trial.number not in asked:
                self._ledger.append("ask", trial=trial.number, params=trial.params)
            if trial.state == "running":
                self._take_up(trial.number, waits.get(trial.number))
            elif trial.number not in ended:
                self._end(trial)
            elif trial.repeats is None:
                self._known.epochs[trial.number] = trial.epochs or self._plan.horizon

    def _replay_rung(self, event: ledger.Event) -> None:
        self._known.epochs[event["trial"]] = event["epoch"]
        if not event["broken"] and self._rule is not None:
            self._rule.report(event["trial"], event["epoch"], event["values"])

    def _take_up(self, number: int, waits_at: int | None) -> None:
        """Put a trial of an earlier driver back where it was: paused, or to be gone on with."""
        place = self._runs.place(f"trial-{number}")
        for event in self._ledger.of("rung", trial=number):
            promoted = any(e["epoch"] == event["epoch"] for e in self._ledger.of("promote", trial=number))
            traffic.decide(place, event["epoch"], event["go"] or promoted)
            if event["broken"]:
                self._known.doomed[number] = f"breaks {', '.join(event['broken'])}"
        record = None if waits_at is None else Result.load(place, traffic.rung_file(waits_at))
        if record is None or waits_at is None or "latency_ms" not in record.cost or number in self._known.doomed:
            self._known.resume.append(number)
            return
        self._known.paused[number] = waits_at
        self._known.seen[number] = objective.values(record, self._spec.objectives)
        self._shown.add(number)
