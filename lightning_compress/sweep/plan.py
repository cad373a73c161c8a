"""The dry run: how many runs, how long and how much disk a study takes, without training anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from lightning_compress.run.result import Result
from lightning_compress.sweep import record
from lightning_compress.sweep.progress import size
from lightning_compress.sweep.spec import StudySpec


@final
@dataclass(frozen=True)
class Plan:
    """What a study will do: runs by kind (confirmations are a guess until the front is known), seconds and bytes.

    `seconds` of one worker and `disk` are of what is left to do, None where nothing is known; `source` says what they
    are from; `workers` run at once.

    >>> print(Plan({"trial": 24}, 0, 72.0, None, "3 s per run, the study's guess", workers=2).text())
    24 runs: 24 trial
    about 0.6 minutes with 2 at once (3 s per run, the study's guess)
    """

    runs: dict[str, int]
    num_done: int
    seconds: float | None
    disk: float | None
    source: str
    workers: int = 1

    def text(self) -> str:
        """The plan in a few lines."""
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.runs.items() if number)
        done = f", {self.num_done} of them done" if self.num_done else ""
        if self.seconds is None:
            return f"{sum(self.runs.values())} runs: {kinds}{done}\ntime and disk: {self.source}"
        disk = "" if self.disk is None else f", {size(self.disk)} of disk"
        beside = f" with {self.workers} at once" if self.workers > 1 else ""
        return (
            f"{sum(self.runs.values())} runs: {kinds}{done}\n"
            f"about {self.seconds / self.workers / 60:.2g} minutes{beside}{disk} ({self.source})"
        )


def plan(spec: StudySpec, folder: Path) -> Plan:
    """What running `spec` in `folder` takes; finished runs there are counted and measured."""
    done = [path.parent for path in record.results(folder)]
    front = _front_size(spec, folder)
    runs = {
        "teacher": int(spec.teacher is not None),
        "baseline": len(spec.baselines),
        "trial": spec.trials,
        "confirmation": (front + len(spec.baselines)) * len(spec.confirm_seeds),
    }
    workers = spec.launching.workers or 1
    left = max(0, sum(runs.values()) - len(done))
    if done:
        seconds = sum(Result.load(place).wall_seconds for place in done) / len(done)
        disk = sum(file.stat().st_size for place in done for file in place.rglob("*") if file.is_file()) / len(done)
        return Plan(runs, len(done), seconds * left, disk * left, f"from the {len(done)} runs done", workers)
    if spec.expected_seconds is None:
        return Plan(runs, 0, None, None, "unknown until a run is done; write expected_seconds into the study")
    return Plan(
        runs=runs,
        num_done=0,
        seconds=spec.expected_seconds * left,
        disk=None if spec.expected_megabytes is None else spec.expected_megabytes * 1e6 * left,
        source=f"{spec.expected_seconds:g} s per run, the study's guess",
        workers=workers,
    )


def _front_size(spec: StudySpec, folder: Path) -> int:
    """Points on the front so far; a third of the trials is the guess before there is one."""
    try:
        return len(record.collect(folder).front)
    except ValueError:
        return max(1, spec.trials // 3)
