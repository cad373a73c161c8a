"""The same study on real training with the stopping rule and without it, at an equal budget of 20 full trainings.

    OMP_NUM_THREADS=1 python benchmarks/race.py    # 25 minutes of one core; what has a record is not run again
    python benchmarks/race.py --report             # the table and the plot from the records

The study is `benchmarks/race.yaml`: the shipped engine from end to end, one run after another in this process. Variants
differ in the rule, or in who draws, and in nothing else; the sampler's seed is the seed of the race. Hypervolumes are
shares of a box that was fixed beforehand: accuracy from 0.9 to 1, and the logarithm of the packed bytes from those of
the dense float network of width 1 down to a hundredth of them. The reference point is accuracy 0.9 at dense bytes:
what is worse in either counts nothing. "full" counts networks that were trained in full, "all" also paused ones, at
the point that they reached.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from race_report import PLAIN, RANDOM, RULE, report
from rich.console import Console

from lightning_compress.launch.inline import Finished, Inline
from lightning_compress.launch.job import Job, Resources
from lightning_compress.run import config
from lightning_compress.run.result import Result
from lightning_compress.sweep import check, engine, ledger, spec
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.record import StudyRecord
from lightning_compress.sweep.runs import Tools
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.tracking.provenance import provenance

Array = NDArray[np.float64]
STUDY = Path(__file__).with_name("race.yaml")
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"fidelity": None},
    RULE: {},
    RANDOM: {"sampler": "random"},
}


@final
class Clocked:
    """`Inline` that notes this process's CPU seconds beside the wall clock: neighbours on the machine do not count."""

    patience, workers = 0.0, 1

    def __init__(self) -> None:
        self._inline = Inline()
        self.ticks = [(time.time(), time.process_time())]

    def has_room(self, resources: Resources) -> bool:
        """Always: a job is over when `submit` returns."""
        return True

    def submit(self, job: Job) -> Finished:
        """Run the job."""
        self._tick()
        done = self._inline.submit(job)
        self._tick()
        return done

    def resize(self, workers: int) -> None:
        """Nothing: one job runs at a time."""

    def close(self) -> None:
        """Nothing: no job runs."""

    def seconds(self, moments: Sequence[float]) -> Array:
        """CPU seconds of this process at these times of the wall clock."""
        wall, cpu = zip(*self.ticks, strict=True)
        return np.asarray(np.interp(moments, wall, cpu))

    def _tick(self) -> None:
        self.ticks.append((time.time(), time.process_time()))


def reached(folder: Path, stops: Sequence[int]) -> Iterator[tuple[float, int, int, int, Sequence[float]]]:
    """Moment, epochs trained by all trials so far, trial, its epoch and objectives, wherever a trial stopped.

    Epochs count when they were trained, those of a trial that failed as well: up to where it would have stopped.
    """
    spent, at, training = 0, dict[int, int](), set[str]()
    for event in ledger.read(folder):
        if event["event"] == "start" and event["stage"] == "training":
            training.add(event["run"])
        if event["event"] not in ("rung", "end"):
            continue
        number = int(event["trial"])
        following = next((stop for stop in stops if stop > at.get(number, 0)), 0)
        if f"trial-{number}" in training:
            training.remove(f"trial-{number}")
            spent += following - at.get(number, 0)
            at[number] = following
            if event["event"] == "rung" or event["state"] == "done":
                yield event["at"], spent, number, following, event["values"]


def run(study: StudySpec, levels: Sequence[int], folder: Path) -> dict[str, Any]:
    """Sweep in `folder`; what the record of a variant and a seed holds."""
    tools, clock = Tools(partial(config.compose, folders=[])), Clocked()
    study = replace(study, report=str(folder / "report"))
    home = folder / "study"
    found = engine.sweep(study, tools, clock, folder=home, progress=Progress(Console(file=io.StringIO())))
    horizon = check.check(study, tools).horizon
    begun = min(event["at"] for event in ledger.read(home) if event["event"] == "ask")
    stops = [*(levels if study.fidelity else ()), horizon]
    points = [
        {
            "trainings": spent / horizon,
            "seconds": round(float(clock.seconds([moment])[0] - clock.seconds([begun])[0]), 2),
            "wall": round(moment - begun, 2),
            "trial": number,
            "epoch": epoch,
            "values": list(values),
        }
        for moment, spent, number, epoch, values in reached(home, stops)
    ]
    rungs = [asdict(rung) for rung in found.foresight.rungs]
    return {
        "horizon": horizon,
        "dense_bytes": found.baselines[0].result.cost["dense_bytes"],
        "baseline": {"accuracy": found.baselines[0].values[0], **found.baselines[0].test},
        "points": points,
        "states": {state: found.count(state) for state in ("done", "stopped", "failed")},
        "reasons": [trial.reason for trial in found.trials if trial.state == "failed"],
        "rungs": rungs,
        "bytes_missed": found.foresight.bytes_missed,
        "curves": curves(found, home, [*levels, horizon]),
        "test": {point.run.removeprefix("trial-"): point.test["test/accuracy"] for point in found.front},
    }


def curves(found: StudyRecord, folder: Path, epochs: Sequence[int]) -> dict[str, list[float]]:
    """Validation accuracies after `epochs` epochs of the trials that were trained in full, as training saw them."""
    full = [trial.number for trial in found.trials if trial.state == "done"]
    histories = {number: Result.load(folder / "runs" / f"trial-{number}").history for number in full}
    return {str(number): [kept[epoch - 1]["val/accuracy"] for epoch in epochs] for number, kept in histories.items()}


def measure(name: str, seed: int, options: argparse.Namespace) -> None:
    """Run a variant on a seed, unless there is a record of it."""
    base = spec.load(STUDY)
    levels = check.check(base, Tools(partial(config.compose, folders=[]))).rungs
    study = replace(base, sampler_seed=seed, **VARIANTS[name])
    settings = json.loads(json.dumps(study.asdict()))
    path = options.out / f"{name.replace(' ', '_').replace(',', '')}_{seed}.json"
    if path.exists():
        if json.loads(path.read_text())["study"] != settings:
            raise ValueError(f"{path} is of another study: delete it to measure anew")
        return
    with tempfile.TemporaryDirectory() as folder:
        found = run(study, levels, Path(folder))
    head = {"variant": name, "seed": seed, "levels": levels, "study": settings, "provenance": provenance()}
    path.write_text(json.dumps(head | found, separators=(",", ":")) + "\n")
    print(f"{name}, seed {seed}: {found['states']}, {found['points'][-1]['seconds']:.0f} s", flush=True)


def main() -> None:
    """Measure what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=list(VARIANTS), nargs="+", default=[PLAIN, RULE])
    parser.add_argument("--out", type=Path, default=Path("reports/records/race"))
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for seed in options.seeds:
            for name in options.only:
                measure(name, seed, options)
    report(options.out)


if __name__ == "__main__":
    main()
