"""How a study stands, read from its folder while it runs or not."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lightning_compress.sweep import control, ledger, record
from lightning_compress.sweep.study import Trial

_FAILURES = 5


@final
@dataclass(frozen=True)
class Status:
    """A study as it stands: who drives it, its trials, the runs under way with seconds since they started.

    `waiting` trials are paused, or were under way when their driver ended: they go on when it is resumed.
    """

    name: str
    driver: str | None
    budget: int
    trials: tuple[Trial, ...]
    running: dict[str, float]
    waiting: tuple[int, ...]

    def text(self) -> str:
        """The status in a few lines."""
        counts = ", ".join(f"{self._count(state)} {state}" for state in ("done", "stopped", "failed"))
        lines = [
            f"study {self.name}: {self.driver or 'nobody runs it; `sweep resume` goes on'}",
            f"trials: {len(self.trials)} of {self.budget} drawn, {counts}, {len(self.waiting)} waiting",
        ]
        lines += [f"running: {name} for {seconds:.0f} s" for name, seconds in self.running.items()]
        failed = [trial for trial in self.trials if trial.state == "failed"]
        lines += [f"failed: trial {trial.number}: {trial.reason}" for trial in failed[-_FAILURES:]]
        return "\n".join(lines)

    def _count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.trials)


def status(folder: Path) -> Status:
    """The status of the study in `folder`.

    Raises:
        ValueError: the folder holds no study, or its ledger is damaged.
    """
    spec, _, _ = record.read_spec(folder)
    driven = control.is_driven(folder)
    started: dict[str, float] = {}
    for event in ledger.read(folder):
        if event["event"] == "start":
            started[event["run"]] = event["at"]
        elif event["event"] == "exit":
            started.pop(event["run"], None)
    drawn = record.trials(folder)
    running = {name: time.time() - at for name, at in started.items()} if driven else {}
    open_trials = [trial.number for trial in drawn if trial.state == "running"]
    return Status(
        name=spec.name,
        driver=_driver(folder) if driven else None,
        budget=spec.trials,
        trials=drawn,
        running=running,
        waiting=tuple(number for number in open_trials if f"trial-{number}" not in running),
    )


def _driver(folder: Path) -> str:
    known = json.loads((folder / control.DRIVER).read_text())
    return f"running, process {known['pid']} on {known['host']}"
