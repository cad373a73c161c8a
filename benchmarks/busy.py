"""How busy the driver of a sweep keeps 64 workers whose trials take seconds: the shipped engine, only training is not.

    python benchmarks/busy.py --out reports/records/overheads/busy.json         # without a stopping rule, 3 minutes
    python benchmarks/busy.py --rule --out reports/records/overheads/busy.json  # with one, 2 minutes

The study is `sweeps/digits.yaml`; configs, ledger, journal, sampler, rule and report are real. A job is a deadline in
one of the slots, so it costs no CPU but for the files that it leaves. Lengths of full trainings are log-uniform,
the longest ten times the shortest. A timing takes a slot as any job does, which is how Slurm runs it. With --own-core
the clock of the workers and the figures stands still while the driver waits for a core that other processes have.
"""

import argparse
import io
import json
import math
import os
import resource
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, final

from rich.console import Console
from slots import EPOCHS, SPREAD, TIMING, Clock, Deadline, Length, Moment, Slots

from lightning_compress.run import config
from lightning_compress.sweep import engine, spec
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.runs import Tools
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.study import Study
from lightning_compress.tracking.provenance import provenance

STUDY = Path(__file__).parents[1] / "sweeps" / "digits.yaml"
RULE = {"ramp": 30, "grace": 2}
P = ParamSpec("P")
T = TypeVar("T")


@final
@dataclass
class Meter:
    """Calls of a function: when each began and ended."""

    clock: Clock
    calls: list[tuple[Moment, Moment]] = field(default_factory=list)

    def on(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, metered."""

        def metered(*args: P.args, **kwargs: P.kwargs) -> T:
            before = Moment.now(self.clock)
            found = function(*args, **kwargs)
            self.calls.append((before, Moment.now(self.clock)))
            return found

        return metered

    def spent(self, start: Moment, end: Moment, kind: str) -> list[float]:
        """Seconds of a `kind`, at or cpu, in each call that ended in a window."""
        within = [call for call in self.calls if start.at < call[1].at <= end.at]
        return [getattr(after, kind) - getattr(before, kind) for before, after in within]


def study(trials: int, workers: int, rule: bool, folder: Path) -> StudySpec:
    """The shipped study with more trials, more epochs, and without what comes after the search."""
    shipped = spec.load(STUDY)
    return replace(
        shipped,
        name="busy",
        base=[*shipped.base, f"epochs={EPOCHS}", "wandb.mode=disabled"],
        trials=trials,
        fidelity=RULE if rule else None,
        launch={"workers": workers},
        confirm_seeds=[],
        test=False,
        report=str(folder / "report"),
    )


def measure(workers: int, trials: int, mean: float, *, rule: bool, own_core: bool) -> dict[str, Any]:
    """One sweep; what its workers and its driver did meanwhile."""
    clock = Clock(own_core)
    meters = {name: Meter(clock) for name in ("ask", "compose", "fsync", "files of the simulated workers")}
    asks, composed, synced, files = meters.values()
    Study.ask = asks.on(Study.ask)  # type: ignore[method-assign]
    Deadline._reach = files.on(Deadline._reach)  # type: ignore[method-assign]
    os.fsync = synced.on(os.fsync)
    launcher = Slots(workers, Length(mean), clock)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = study(trials, workers, rule, folder)
        progress = Progress(Console(file=io.StringIO(), width=200))
        tools = Tools(composed.on(config.compose))
        found = engine.sweep(wanted, tools, launcher, folder=folder / "study", progress=progress)
    if launcher.full is None:
        raise ValueError(
            f"the driver never filled {workers} slots: it is too slow for them, or there are too few trials"
        )
    states = {state: found.count(state) for state in ("done", "stopped", "failed")}
    loads = {"load_before": load, "load_after": os.getloadavg()[0]}
    return workers_figures(launcher, launcher.full, asks) | driver_figures(meters, launcher.full) | states | loads


def workers_figures(launcher: Slots, start: Moment, asks: Meter) -> dict[str, Any]:
    """What the slots did from `start`, when all were taken first, until the last trial was asked."""
    end = asks.calls[-1][1]
    window, asked = end.at - start.at, len(asks.spent(start, end, "at"))
    delays = [taken - freed for freed, taken in launcher.starts if start.at < taken <= end.at]
    return {
        "busy_share": busy(launcher.work, start.at, end.at) / launcher.workers,
        "busy_share_whole_search": busy(launcher.work, launcher.trials[0], max(launcher.work)[1]) / launcher.workers,
        "window_s": window,
        "trials_per_s": asked / window,
        "jobs_per_s": len(delays) / window,
        "work_per_trial_s": busy(launcher.work, start.at, end.at) * window / asked,
        "free_to_start_ms": spread(delays),
        "rung_wait_ms": spread([until - since for since, until in launcher.waits]),
    }


def driver_figures(meters: dict[str, Meter], start: Moment) -> dict[str, Any]:
    """Where the driver's time went in the same window, and what its calls took."""
    end = meters["ask"].calls[-1][1]
    window = end.at - start.at
    return {
        "driver_cpu_share": (end.cpu - start.cpu) / window,
        "driver_waits_for_a_core_share": (end.starved - start.starved) / window,
        "wall_shares": {name: sum(meter.spent(start, end, "at")) / window for name, meter in meters.items()},
        "cpu_ms": {name: spread(meter.spent(start, end, "cpu")) for name, meter in meters.items()},
        "wall_ms": {name: spread(meter.spent(start, end, "at")) for name, meter in meters.items()},
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def busy(work: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Slots that were at work, on average over a window."""
    return sum(max(0.0, min(until, end) - max(since, start)) for since, until in work) / (end - start)


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile in milliseconds, None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return {
        "median": statistics.median(ordered) * 1e3,
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1] * 1e3,
    }


def main() -> None:
    """Print the figures and, with --out, put them beside those of the other setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--mean", type=float, default=10.0, metavar="SECONDS", help="of a full training")
    parser.add_argument("--rule", action="store_true", help="stop poor trials early")
    parser.add_argument("--own-core", action="store_true", help="leave out the time that other processes take away")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    figures = measure(options.workers, options.trials, options.mean, rule=options.rule, own_core=options.own_core)
    for key, value in figures.items():
        print(key, json.dumps(value))
    if options.out:
        settings = {"workers": options.workers, "trials": options.trials, "mean_s": options.mean, "spread": SPREAD}
        settings |= {"timing_s": TIMING, "epochs": EPOCHS, "fidelity": RULE if options.rule else None}
        settings["own_core"] = options.own_core
        entry = {"settings": settings, **figures, "cores": os.cpu_count(), "provenance": provenance()}
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        kept["with rule" if options.rule else "without rule"] = entry
        options.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
