"""The table and the plot of `race.py`, from its records only."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import moocore  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from lightning_compress.sweep.rungs import Rule, spearman

Array = NDArray[np.float64]
Record = dict[str, Any]
Records = dict[str, list[Record]]
Values = tuple[float, float]
PLAIN, RULE, RANDOM = "TPE, no rule", "TPE + rule", "random + rule"
COLORS = {PLAIN: "tab:gray", RULE: "tab:blue", RANDOM: "tab:orange"}
WORST_ACCURACY, SMALLEST = 0.9, 0.01
KINDS = {"full": "trained in full", "all": "paused ones as well"}
AXES = {"trainings": "full trainings paid for", "seconds": "CPU seconds of the whole search"}
GRID = 400
TABLE, PLOT = Path("reports/tables/race.md"), Path("reports/tables/race.png")
BOX = """\
The study `benchmarks/race.yaml` (scikit-learn's digits, {horizon} epochs; distillation, pruning and quantization
together) on a budget of {budget:g} full trainings, one run after another on one core. With the rule, trials are
compared after {levels} epochs. Hypervolumes are of validation accuracy and the logarithm of packed bytes, as shares
of a box that was fixed before the race: reference point accuracy {worst:g} at {dense:.1f} kB (the dense float network),
ideal accuracy 1 at {smallest:.0%} of them. "full" counts networks trained in full, "all" also paused ones. Means with
standard deviations over seeds; counts: means, least to most. Front: points of the final front, in whatever region.
Gain: full, paired by seed. What finishes beyond the budget does not count. Seconds are CPU time of the whole search,
export and timing included. `python benchmarks/race.py` measures this."""
CROSSED = f"""\
The place at which the mean over seeds, and each seed by itself, reaches the final hypervolume (full) of {PLAIN},
as a share of what that took."""
FORETOLD = """\
Rank correlation with the end, seed by seed. Without the rule: of validation accuracies in the training of all trials.
With it: of what it compared, among the trials that went on to the end, which it chose itself."""
REPLAYED = f"""\
The trials of {PLAIN} shown to the rule in their order, with the accuracies they had in training; nothing is drawn in
the place of what it stops. Best: the hypervolume of as many of them, chosen greedily with the end known. Below: of the
trials that end above the reference point's accuracy, those below it after the first and after the second rung."""


def volume(points: Sequence[Values], dense_bytes: float) -> float:
    """Hypervolume of (accuracy, bytes), as a share of the box."""
    losses = [
        ((1 - accuracy) / (1 - WORST_ACCURACY), 1 - math.log(dense_bytes / size) / -math.log(SMALLEST))
        for accuracy, size in points
    ]
    inside = np.array([loss for loss in losses if max(loss) < 1])
    return float(moocore.hypervolume(inside, ref=[1.0, 1.0])) if len(inside) else 0.0


def paid(record: Record, kind: str = "all") -> list[Record]:
    """What was reached within the budget: a rule may go on with a trial beyond it, which does not count."""
    budget = record["study"]["trainings"] + 1e-9
    whole = record["horizon"] if kind == "full" else 0
    return [point for point in record["points"] if point["trainings"] <= budget and point["epoch"] >= whole]


def growth(record: Record, kind: str, axis: str) -> tuple[Array, Array]:
    """Where the hypervolume was looked at along `axis`, and the hypervolume there; it holds until the next place."""
    last: dict[int, Values] = {}
    places, volumes = [0.0], [0.0]
    for point in paid(record, kind):
        last[point["trial"]] = tuple(point["values"])
        places.append(point[axis])
        volumes.append(volume(list(last.values()), record["dense_bytes"]))
    return np.array(places), np.array(volumes)


def final(record: Record, kind: str = "full") -> float:
    """Hypervolume at the end of the budget."""
    return float(growth(record, kind, "trainings")[1][-1])


def on_grid(records: Sequence[Record], kind: str, axis: str, grid: Array) -> Array:
    """Hypervolumes [records, grid]."""
    rows = []
    for record in records:
        places, volumes = growth(record, kind, axis)
        rows.append(volumes[np.searchsorted(places, grid + 1e-9, side="right") - 1])
    return np.array(rows)


def grid_of(records: Sequence[Record], axis: str) -> Array:
    """From 0 to the budget, or to the last place of any sweep."""
    last = max(paid(record)[-1][axis] for record in records)
    return np.linspace(0, records[0]["study"]["trainings"] if axis == "trainings" else last, GRID + 1)


def tested(record: Record) -> float:
    """Hypervolume of the front by its accuracies on the test split."""
    points = [
        (record["test"][str(point["trial"])], point["values"][1])
        for point in paid(record, "full")
        if str(point["trial"]) in record["test"]
    ]
    return volume(points, record["dense_bytes"])


def load(folder: Path) -> Records:
    """Records by variant, in the order of seeds.

    Raises:
        ValueError: there are none of TPE with the rule, or without it.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = {name: [record for record in records if record["variant"] == name] for name in COLORS}
    if not found[PLAIN] or not found[RULE]:
        raise ValueError(f"{folder} lacks records of {PLAIN} or {RULE}: measure first")
    return {name: sorted(each, key=lambda record: record["seed"]) for name, each in found.items() if each}


def outcome(found: Records) -> list[str]:
    """The rows of what each variant had in the end."""
    plain = {record["seed"]: final(record) for record in found[PLAIN]}
    rows = [["", "full", "all", "full, test split", "gain", "trials", "finished", "front", "failed", "seconds"]]
    for name, records in found.items():
        gaps = [final(record) - plain[record["seed"]] for record in records]
        counts = [
            [sum(record["states"].values()) for record in records],
            [len(paid(record, "full")) for record in records],
            [len(record["test"]) for record in records],
            [record["states"]["failed"] for record in records],
            [paid(record)[-1]["seconds"] for record in records],
        ]
        volumes = [[final(record, kind) for record in records] for kind in KINDS]
        volumes.append([tested(record) for record in records])
        gain = "" if name == PLAIN else f"{_mean(gaps, '+')} ({', '.join(f'{gap:+.3f}' for gap in gaps)})"
        rows.append([name, *map(_mean, volumes), gain, *map(_range, counts)])
    return _table(rows)


def crossings(found: Records) -> list[str]:
    """The rows of where variants reach what TPE without the rule has in the end."""
    rows = [["", "along", "full", "by seed", "all", "by seed"]]
    plain = {record["seed"]: final(record) for record in found[PLAIN]}
    for name, records in found.items():
        for axis in AXES if name != PLAIN else ():
            grid = grid_of(records, axis)
            end = float(np.mean([paid(record)[-1][axis] for record in found[PLAIN]]))
            cells = [name, axis]
            for kind in KINDS:
                curves = on_grid(records, kind, axis, grid)
                own = [_first(curve, plain[r["seed"]], grid / end) for curve, r in zip(curves, records, strict=True)]
                cells += [_first(curves.mean(axis=0), float(np.mean([*plain.values()])), grid / end), ", ".join(own)]
            rows.append(cells)
    return _table(rows)


def foretold(found: Records) -> list[str]:
    """The rows of how well rungs foretold the end."""
    rows = [["after", "accuracy, no rule", "accuracy, rule", "bytes, rule", "fronts, rule", "trials, rule"]]
    for index, level in enumerate(found[RULE][0]["levels"]):
        curves = [np.array([*record["curves"].values()]) for record in found[PLAIN]]
        rungs = [rung for record in found[RULE] for rung in record["rungs"] if rung["level"] == level]
        columns = [
            [spearman(curve[:, index], curve[:, -1]) for curve in curves],
            *([rung["values"][value] for rung in rungs] for value in (0, 1)),
            [rung["fronts"] for rung in rungs],
        ]
        cells = [", ".join("none" if value is None else f"{value:.2f}" for value in column) for column in columns]
        rows.append([f"{level} epochs", *cells, ", ".join(str(rung["trials"]) for rung in rungs)])
    return _table(rows)


def replayed(found: Records) -> list[str]:
    """The rows of what the rule makes of the trials that were drawn without it."""
    rows = [["seed", "trainings", "kept", "full", "best of as many", "of all", "below"]]
    for record in found[PLAIN]:
        known = {p["trial"]: (p["values"][1], record["curves"][str(p["trial"])]) for p in record["points"]}
        ends = {trial: (curve[-1], size) for trial, (size, curve) in known.items()}
        kept, spent = replay(record, known)
        best: list[Values] = []
        while len(best) < len(kept):
            best.append(max(ends.values(), key=lambda one: volume([*best, one], record["dense_bytes"])))
        inside = [curve for _, curve in known.values() if curve[-1] > WORST_ACCURACY]
        below = [sum(curve[index] < WORST_ACCURACY for curve in inside) for index in range(len(record["levels"]))]
        volumes = [volume(points, record["dense_bytes"]) for points in ([ends[one] for one in kept], best)]
        cells = [f"{spent / record['horizon']:.1f}", f"{len(kept)} of {len(known)}", *(f"{v:.3f}" for v in volumes)]
        shares = f"{', '.join(map(str, below))} of {len(inside)}"
        rows.append([str(record["seed"]), *cells, f"{final(record):.3f}", shares])
    return _table(rows)


def replay(record: Record, known: dict[int, tuple[float, list[float]]]) -> tuple[list[int], int]:
    """Trials that the rule lets finish, one at a time, and the epochs that all take; promotions go first."""
    levels = record["levels"]
    rule = Rule(levels, list(record["study"]["objectives"].values()), eta=3)
    kept: list[int] = []
    spent, waiting = 0, list(known)
    while (promoted := rule.promotable()) or waiting:
        trial, start = promoted[0] if promoted else (waiting.pop(0), 0)
        if promoted:
            rule.promoted(trial, start)
        size, curve = known[trial]
        left = [level for level in levels if level > start]
        stop = next((at for at in left if not rule.report(trial, at, (curve[levels.index(at)], size))), None)
        spent += (stop or record["horizon"]) - start
        kept += [trial] if stop is None else []
    return kept, spent


def plot(found: Records, path: Path) -> None:
    """Mean hypervolume and what seeds span, over compute and over time."""
    figure, panels = plt.subplots(1, len(AXES), figsize=(11, 4.4), sharey=True, layout="constrained")
    for axis, panel in zip(AXES, panels, strict=True):
        for name, records in found.items():
            grid = grid_of(records, axis)
            for kind in ("full",) if name == PLAIN else KINDS:
                rows = on_grid(records, kind, axis, grid)
                style = {"full": "-", "all": ":"}[kind]
                panel.plot(grid, rows.mean(axis=0), style, color=COLORS[name], label=f"{name}, {KINDS[kind]}")
                if kind == "full":
                    span = rows.min(axis=0), rows.max(axis=0)
                    panel.fill_between(grid, *span, color=COLORS[name], alpha=0.12, linewidth=0)
            if name == PLAIN:
                panel.axhline(rows.mean(axis=0)[-1], color=COLORS[name], linewidth=0.6)
        panel.set_xlabel(AXES[axis])
        panel.set_xlim(left=0)
        panel.locator_params(axis="x", integer=True, nbins=8)
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("hypervolume, share of the box")
    panels[0].legend(loc="lower right", fontsize=8)
    figure.suptitle("Means over seeds, and what seeds span for networks trained in full", fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def report(folder: Path) -> None:
    """Write the table and the plot from the records in `folder`."""
    found = load(folder)
    first = found[PLAIN][0]
    facts = {"horizon": first["horizon"], "budget": first["study"]["trainings"], "dense": first["dense_bytes"] / 1000}
    levels = " and ".join(map(str, first["levels"]))
    sections = [
        "# The stopping rule on real training",
        BOX.format(**facts, levels=levels, worst=WORST_ACCURACY, smallest=SMALLEST),
        "\n".join(outcome(found)),
        f"## Where {PLAIN} is caught up with",
        CROSSED,
        "\n".join(crossings(found)),
        "## What rungs foretold",
        FORETOLD,
        "\n".join(foretold(found)),
        "## The same trials under the rule",
        REPLAYED,
        "\n".join(replayed(found)),
    ]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("\n\n".join(sections) + "\n")
    plot(found, PLOT)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def _first(values: Array, goal: float, places: Array) -> str:
    there = np.flatnonzero(values >= goal - 1e-9)
    return f"{places[there[0]]:.2f}" if len(there) else "never"


def _mean(values: Sequence[float], sign: str = "") -> str:
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):{sign}.3f} ± {spread:.3f}"


def _range(counts: Sequence[float]) -> str:
    return f"{np.mean(counts):.0f} ({min(counts):.0f} to {max(counts):.0f})"
