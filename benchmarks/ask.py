"""What a study's next draw costs at 100 to 5,000 trials, and what it loses where TPE does not look at all.

    python benchmarks/ask.py --out reports/records/overheads/ask.json            # a few minutes
    python benchmarks/ask.py --quality 8 --out reports/records/overheads/ask.json  # an hour on one core

Three objectives and nine parameters, one of them conditional, shaped as DTLZ2 (Deb et al., 2002): two parameters place
a point on the front, the others decide how far from it. Histories of the time measurement come from NSGA-II.
"""

import argparse
import json
import math
import os
import resource
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import moocore  # type: ignore[import-untyped]
import optuna

from lightning_compress.sweep import space
from lightning_compress.sweep.store import JOURNAL
from lightning_compress.sweep.study import Study
from lightning_compress.sweep.view import Direction, View, make_sampler
from lightning_compress.tracking.provenance import provenance

SPACE = space.parse(
    {
        "width": [0.5, 0.75, 1.0],
        "temperature": {"low": 1.0, "high": 10.0, "log": True},
        "weight": {"low": 0.1, "high": 0.9},
        "pattern": ["unstructured", "channel"],
        "sparsity": {"low": 0.2, "high": 0.9},
        "exponent": [1, 3, 5],
        "weight_bits": {"low": 2, "high": 8, "int": True},
        "activation_bits": [None, 4, 6, 8],
        "group": {"low": 1, "high": 8, "int": True, "when": {"pattern": "channel"}},
    }
)
OBJECTIVES = {"error": "min", "bytes": "min", "latency": "min"}
DIRECTIONS: list[Direction] = ["minimize"] * 3
SIZES = (100, 300, 1000, 5000)
LIMITS = (10**9, 500, 300)
CHECKPOINTS = (400, 1000)
BEST = 1.1**3 - math.pi / 6


def evaluate(params: dict[str, Any]) -> tuple[float, float, float]:
    """The three objectives, smaller is better; on the front their squares add up to 1."""
    along, across = (params["sparsity"] - 0.2) / 0.7, (params["weight_bits"] - 2) / 6
    # Where the best of the others lies depends on the place along the front, as the best recipe depends on the size.
    distance = (math.log10(params["temperature"]) - 0.2 - 0.6 * along) ** 2
    distance += (params["weight"] - 0.3 - 0.4 * across) ** 2
    distance += 0.2 * abs({0.5: 0, 0.75: 1, 1.0: 2}[params["width"]] - round(2 * along))
    distance += 0.05 * abs(params["exponent"] - 3) + 0.1 * (params["activation_bits"] != 6)
    distance += 0.02 * (params["group"] - 4) ** 2 if params["pattern"] == "channel" else 0.1
    first, second, far = along * math.pi / 2, across * math.pi / 2, 1 + distance
    return (
        far * math.cos(first) * math.cos(second),
        far * math.cos(first) * math.sin(second),
        far * math.sin(first),
    )


def volume(study: Study) -> float:
    """Hypervolume in shares of what the whole continuous front dominates."""
    return float(moocore.hypervolume([trial.values for trial in study.trials() if trial.values], ref=[1.1] * 3)) / BEST


def fill(study: Study, trials: int) -> list[float]:
    """Run trials until there are that many; returns the milliseconds (of the process) of each ask."""
    times = []  # of the process, which other processes do not lengthen
    while study.num_spent < trials:
        start = time.process_time()
        trial = study.ask(SPACE)
        times.append((time.process_time() - start) * 1e3)
        if trial.state == "running":
            study.tell(trial.number, evaluate(trial.params))
    return times


def opened(folder: Path | None, sampler: str, seed: int = 0, limit: int | None = None) -> Study:
    """A study; `limit` trials are shown to TPE."""
    study = Study(folder, name="ask", objectives=OBJECTIVES, sampler=sampler, seed=seed)
    if limit is not None:
        study._view = View(sampler, DIRECTIONS, constraints=(), policy="value", limit=limit)
    return study


def plain(trials: list[optuna.trial.FrozenTrial], asks: int) -> list[float]:
    """Milliseconds of each ask of an ordinary Optuna study in memory with the same trials and sampler."""
    study = optuna.create_study(directions=DIRECTIONS)
    study.add_trials(trials)
    times = []
    for index in range(asks):
        study.sampler = make_sampler("tpe", index)
        start = time.process_time()
        trial = study.ask()
        params = space.suggest(trial, SPACE)
        times.append((time.process_time() - start) * 1e3)
        study.tell(trial, evaluate(params))
    return times


def speed() -> dict[str, Any]:
    """Ask times in a journal at each size, beside Optuna's own; size, memory and reopening at the last."""
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), _resident()
        for size in SIZES:
            fill(opened(folder, "nsga2"), size)
            start = time.process_time()
            study = opened(folder, "tpe")
            history = study._study.get_trials(deepcopy=False)
            reopen = time.process_time() - start
            row = {"trials": size, "reopen_s": reopen, "journal_mb": (folder / JOURNAL).stat().st_size / 1e6}
            row |= _spread("optuna", plain(history, 5 if size > 1000 else 20))
            row |= _spread("ask", fill(study, size + 40)) | {"rss_growth_mb": _resident() - before}
            table[str(size)] = row
            print(" ".join(f"{key}={value:.1f}" for key, value in row.items()), flush=True)
    return table


def quality(seeds: int) -> dict[str, Any]:
    """Hypervolume reached with each limit on what TPE is shown, and by random draws."""
    table: dict[str, Any] = {}
    kinds = [("random", None), *(("tpe", limit) for limit in LIMITS)]
    for seed in range(seeds):
        for sampler, limit in kinds:
            study = opened(None, sampler, seed, limit)
            name = sampler if limit is None else "all" if limit == max(LIMITS) else str(limit)
            for size in CHECKPOINTS:
                times = fill(study, size)
                row = table.setdefault(name, {}).setdefault(str(size), {"volumes": [], "last_ask_ms": []})
                row["volumes"].append(volume(study))
                row["last_ask_ms"].append(statistics.median(times[-20:]))
                print(seed, name, size, row["volumes"][-1], row["last_ask_ms"][-1], flush=True)
    return table


def _spread(name: str, times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        f"{name}_median_ms": statistics.median(ordered),
        f"{name}_p95_ms": ordered[math.ceil(0.95 * len(ordered)) - 1],
    }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """Print the tables and, with --out, write them as JSON; a table that is not measured again is kept there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quality", type=int, default=0, metavar="SEEDS", help="measure this instead of the times")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    key, table = ("quality", quality(options.quality)) if options.quality else ("speed", speed())
    if options.out:
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        entry = {"table": table, "cores": os.cpu_count(), "provenance": provenance()}
        options.out.write_text(json.dumps(kept | {key: entry}, indent=1) + "\n")


if __name__ == "__main__":
    main()
