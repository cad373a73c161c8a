"""Stopping rules and samplers compared on the LCBench surrogate, at an equal budget of 20 full trainings.

    python benchmarks/lcbench.py --tasks dev --seeds 3 --only losers     # settings were chosen on these tasks
    python benchmarks/lcbench.py --tasks held-out --seeds 12             # the comparison; resumes where it stopped
    python benchmarks/lcbench.py --report                                # the table and the plot from the records

Hypervolumes are shares of the task's ceiling, the front of 5,000 random networks trained in full. "full" counts
networks that were trained in full, "all" also those stopped before, at the point they reached. The surrogate's files
are read from `--data` (default: `lcbench` below $LIGHTNING_COMPRESS_DATA).
"""

import argparse
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
from numpy.typing import NDArray
from simulate import HORIZON, Surrogate, Sweep, Variant, volume

Array = NDArray[np.float64]
GRID = 48
TRAININGS = 20
RULE = Variant("tpe")
MAIN = {
    "Optuna default": Variant("optuna", levels=()),
    "random + rule": replace(RULE, sampler="random"),
    "TPE + rule": RULE,
}
LOSERS = {
    "TPE + rule, front finished": replace(RULE, finish=True),
    "random + rule, front finished": replace(RULE, sampler="random", finish=True),
    "random, no rule": Variant("random", levels=()),
    "10 random trials first": replace(RULE, startup=10),
    "joint TPE + rule": replace(RULE, sampler="joint"),
    "stopped count as bad": replace(RULE, policy="pruned"),
    "stopped not shown": replace(RULE, policy="none"),
    "fronts and crowding": replace(RULE, ranking="crowding"),
    "fronts and crowding, rungs 3/9/27": replace(RULE, ranking="crowding", levels=(3, 9, 27)),
    "by error only": replace(RULE, values=("error",)),
    "no promotion": replace(RULE, promote=False),
    "rungs 3/9/27": replace(RULE, levels=(3, 9, 27)),
    "rung 3": replace(RULE, levels=(3,)),
    "eta 2": replace(RULE, eta=2),
    "eta 4, rungs 3/12": replace(RULE, eta=4, levels=(3, 12)),
    "NSGA-II + rule": replace(RULE, sampler="nsga2"),
    "NSGA-II, no rule": Variant("nsga2", levels=()),
    "GP, no rule": Variant("gp", levels=()),
}
WORKERS = (1, 8)
TABLE, PLOT = Path("reports/tables/lcbench.md"), Path("reports/tables/lcbench.png")


def curves(surrogate: Surrogate, variant: Variant, seed: int, workers: int) -> dict[str, Any]:
    """Hypervolume over the budget, on a grid of equal steps, of one sweep."""
    steps = iter(np.linspace(0, TRAININGS * HORIZON, GRID + 1)[1:])
    sweep = Sweep(surrogate, variant, seed, workers, TRAININGS)
    last: dict[int, tuple[int, tuple[float, float]]] = {}
    found: dict[str, list[float]] = {"full": [], "all": []}

    def note() -> None:
        reached = {
            "full": [point for epoch, point in last.values() if epoch == HORIZON],
            "all": [point for _, point in last.values()],
        }
        for name, points in reached.items():
            found[name].append(round(volume(points) / surrogate.ceiling, 4))

    step = next(steps)
    for spent, trial, epoch, point in sweep.run():
        while spent > step:
            note()
            step = next(steps)
        last[trial.number] = (epoch, point)
    while len(found["full"]) < GRID:
        note()
    return found | {"trials": len(last), "finished": sum(epoch == HORIZON for epoch, _ in last.values())}


def measure(name: str, variant: Variant, workers: int, tasks: list[str], options: argparse.Namespace) -> None:
    """Run what the record of a variant lacks, and save after each task."""
    path = options.out / f"{name.replace(' ', '_').replace(',', '').replace('/', '-')}_{workers}.json"
    record: dict[str, Any] = {"variant": name, "settings": asdict(variant), "workers": workers, "sweeps": {}}
    if path.exists():
        record = json.loads(path.read_text())
        if record["settings"] != json.loads(json.dumps(asdict(variant))):
            raise ValueError(f"{path} was measured with other settings: delete it to measure anew")
    for task in tasks:
        sweeps = record["sweeps"].setdefault(task, {})
        missing = [seed for seed in range(options.seeds) if str(seed) not in sweeps]
        if not missing:
            continue
        surrogate = Surrogate(options.data, task)
        for seed in missing:
            sweeps[str(seed)] = curves(surrogate, variant, seed, workers)
        path.write_text(json.dumps(record, separators=(",", ":")) + "\n")
        print(f"{name}, {workers} workers, task {task}", flush=True)


def load(folder: Path, tasks: list[str]) -> dict[tuple[str, int], dict[tuple[str, str], Any]]:
    """The sweeps on `tasks` of each variant and number of workers, by task and seed."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        sweeps = {(t, seed): s for t in tasks for seed, s in record["sweeps"].get(t, {}).items()}
        if sweeps:
            found[record["variant"], record["workers"]] = sweeps
    return found


def crossing(sweeps: dict[tuple[str, str], Any], kind: str, goal: float) -> str:
    """Share of the budget at which the mean hypervolume reaches `goal`."""
    mean = np.mean([sweep[kind] for sweep in sweeps.values()], axis=0)
    reached = np.flatnonzero(mean >= goal - 1e-9)
    return f"{(reached[0] + 1) / GRID:.2f}" if len(reached) else "never"


def summary(found: dict[tuple[str, int], dict[tuple[str, str], Any]], names: list[str]) -> list[str]:
    """The table's rows: each variant against Optuna's default with as many workers, on the same tasks and seeds."""
    lines = [
        "| variant | workers | full | all | compute, full | all | trials | finished | gain, full | sweeps |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for workers in WORKERS:
        default = found.get(("Optuna default", workers), {})
        for name in names:
            sweeps = found.get((name, workers), {})
            keys = [key for key in sweeps if key in default]
            if not keys:
                continue
            sweeps = {key: sweeps[key] for key in keys}
            goal = float(np.mean([default[key]["full"][-1] for key in keys]))
            last = {kind: [sweeps[key][kind][-1] for key in keys] for kind in ("full", "all")}
            gap = np.array(last["full"]) - [default[key]["full"][-1] for key in keys]
            counts = [np.mean([sweeps[key][what] for key in keys]) for what in ("trials", "finished")]
            cells = [
                name,
                str(workers),
                *(_mean(_by_seed(keys, last[kind])) for kind in ("full", "all")),
                *(crossing(sweeps, kind, goal) for kind in ("full", "all")),
                f"{counts[0]:.0f}",
                f"{counts[1]:.1f}",
                _mean(_by_seed(keys, gap), sign="+") if name != "Optuna default" else "",
                str(len(keys)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def per_task(found: dict[tuple[str, int], dict[tuple[str, str], Any]], tasks: list[str]) -> list[str]:
    """The hypervolume of fully trained networks at the end, task by task."""
    columns = [(name, workers) for workers in WORKERS for name in MAIN if (name, workers) in found]
    lines = [
        f"| task | {' | '.join(f'{name}, {workers}' for name, workers in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for task in tasks:
        values = [[s["full"][-1] for (t, _), s in found[column].items() if t == task] for column in columns]
        if all(values):
            lines.append(f"| {task} | {' | '.join(_mean(np.array(column)) for column in values)} |")
    return lines


def plot(found: dict[tuple[str, int], dict[tuple[str, str], Any]], path: Path) -> None:
    """Mean hypervolume over the budget, a panel for each number of workers."""
    figure, axes = plt.subplots(1, len(WORKERS), figsize=(10, 4), sharey=True, layout="constrained")
    budget = TRAININGS * np.arange(1, GRID + 1) / GRID
    for workers, panel in zip(WORKERS, axes, strict=True):
        for color, name in zip(("tab:gray", "tab:orange", "tab:blue"), MAIN, strict=True):
            sweeps = found.get((name, workers))
            if not sweeps:
                continue
            for kind, style in (("full", "-"), ("all", ":")):
                if kind == "all" and name == "Optuna default":
                    continue
                mean = np.mean([sweep[kind] for sweep in sweeps.values()], axis=0)
                label = f"{name}, {'trained in full' if kind == 'full' else 'stopped ones as well'}"
                panel.plot(budget, mean, style, color=color, label=label)
            if name == "Optuna default":
                panel.axhline(mean[-1], color=color, linewidth=0.6)
        panel.set_title(f"{workers} worker{'s' * (workers > 1)}")
        panel.set_xlabel("full trainings paid for")
        panel.set_ylim(0.4, 1)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("hypervolume, share of the ceiling")
    axes[0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)


def report(options: argparse.Namespace, splits: dict[str, list[str]]) -> None:
    """Write the table and the plot from the records."""
    lines = [
        "# Stopping rules on LCBench",
        "",
        "Means over tasks with standard errors over seeds (a row's numbers below: over the seeds of that task);",
        "hypervolumes as shares of the task's ceiling, with networks trained in full only, or all. Compute is the",
        "share of the budget at which the mean reaches what Optuna's default has at the end, with as many workers;",
        "gain is the paired difference to it.",
        "`python benchmarks/lcbench.py` measures this, `--help` says how.",
    ]
    shown = None
    for title, split in (("Tasks kept for the comparison", "held-out"), ("Tasks for choosing settings", "dev")):
        found = load(options.out, splits[split])
        if not found:
            continue
        shown = shown or found
        lines += ["", f"## {title}", "", *summary(found, [*MAIN, *LOSERS]), "", *per_task(found, splits[split])]
    if shown is None:
        raise ValueError(f"{options.out} has no records: measure first")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n")
    plot(shown, PLOT)


def _by_seed(keys: list[tuple[str, str]], values: Sequence[float] | Array) -> Array:
    """Means over tasks, one for each seed: tasks share their seeds' draws, so only seeds are independent."""
    seeds = np.array([seed for _, seed in keys])
    return np.array([np.array(values)[seeds == seed].mean() for seed in np.unique(seeds)])


def _mean(values: Array, sign: str = "") -> str:
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{values.mean():{sign}.3f} ± {error:.3f}"


def main() -> None:
    """Measure what is missing, then write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get("LIGHTNING_COMPRESS_DATA")
    parser.add_argument("--data", type=Path, default=None if root is None else Path(root) / "lcbench")
    parser.add_argument("--tasks", choices=["dev", "held-out", "all"], default="held-out")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--only", choices=["main", "losers"], default="main")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--out", type=Path, default=Path("reports/records/lcbench"))
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder of the surrogate with --data, or set LIGHTNING_COMPRESS_DATA")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    names = list(json.loads((options.data / "encoding.json").read_text())["OpenML_task_id"])
    dev = (options.data / "dev_tasks.txt").read_text().split()
    known = json.loads((options.data / "config_space.json").read_text())["hyperparameters"][0]["choices"]
    splits = {"dev": dev, "held-out": [name for name in names if name in known and name not in dev]}
    splits["all"] = dev + splits["held-out"]
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for workers in options.workers:
            for name, variant in (MAIN if options.only == "main" else LOSERS).items():
                measure(name, variant, workers, splits[options.tasks], options)
    report(options, splits)


if __name__ == "__main__":
    main()
