"""Learning rate rewinding beside what Renda et al. (arXiv 2003.02389) hold it against: records, table and figure.

    for seed in 0 1 2; do
      for rate in 0.8926 0.945 0.9719; do for variant in lr_rewinding finetune lottery reinit; do
        lightning-compress train experiment=renda2020/$variant methods.prune.sparsity.rate=$rate seed=$seed \
          speed.threads=1 measure.latency=false --out runs/renda2020/$variant-$rate-$seed
      done; done
      lightning-compress train experiment=renda2020/iterative seed=$seed \
        speed.threads=1 measure.latency=false --out runs/renda2020/iterative-$seed
      lightning-compress train experiment=renda2020/lr_rewinding name=renda2020/dense epochs=6 methods.prune=null \
        scheduler.schedule.times=1 seed=$seed speed.threads=1 measure.latency=false --out runs/renda2020/dense-$seed
    done
    python benchmarks/rewinding.py runs/renda2020    # the records, one file a variant, and what is below
    python benchmarks/rewinding.py                   # table and figure from the records

All runs of a seed have the same first training, weight by weight, so differences are taken seed by seed.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator
from scipy import stats

RECORDS = Path("reports/records/renda2020")
TABLE, PLOT = Path("reports/tables/rewinding.md"), Path("reports/tables/rewinding.png")
STYLES = {
    "iterative": ("learning rate rewinding, ten rounds", "tab:purple", "D"),
    "lr_rewinding": ("learning rate rewinding", "tab:blue", "o"),
    "finetune": ("fine-tuning", "tab:green", "s"),
    "lottery": ("weights back to the start", "tab:orange", "^"),
    "reinit": ("weights in random order", "tab:red", "v"),
}
#: The more accurate one first, as published for ResNet-20 at a density of 0.107.
PUBLISHED = [
    ("lr_rewinding", "finetune"),
    ("lr_rewinding", "lottery"),
    ("finetune", "lottery"),
    ("finetune", "reinit"),
    ("lottery", "reinit"),
    ("iterative", "lr_rewinding"),
]
HEAD = """\
# What happens to weights and learning rates when weights are removed

LeNet-300-100 on MNIST, `experiments/renda2020/`: {half} epochs, the weights of least magnitude anywhere in it go,
{half} epochs more (ten rounds: {half} after each). Test accuracy in %, mean ± standard deviation over {count} seeds,
by density. `python benchmarks/rewinding.py` makes this from `records/renda2020/` and says how those were made."""
DIFFERENCES = """\
The ordering published for ResNet-20 at a density of 0.107, pair by pair: differences in percentage points, mean ±
standard error of what single seeds differ by. "yes" and "reversed" where the mean is beyond Student's 95 % point,
"not decided" where {count} seeds do not suffice."""
#: Test accuracy in % by variant, density and seed.
Found = dict[str, dict[float, dict[int, float]]]


def gather(folder: Path) -> None:
    """Write the records: once what all runs of a variant share, and the figures of each.

    Raises:
        ValueError: runs of a variant differ in more than seed and rate, or their code was not committed.
    """
    found = defaultdict(list)
    for path in sorted(folder.glob("*/result.json")):
        run = json.loads(path.read_text())
        if "test/accuracy" in run["metrics"]:
            found[run["name"].removeprefix("renda2020/")].append(run)
    RECORDS.mkdir(parents=True, exist_ok=True)
    for variant, runs in found.items():
        rows = [_row(run) for run in runs]
        shared = [{key: run[key] for key in ("schema", "name", "config", "provenance")} for run in runs]
        if any(one != shared[0] for one in shared) or shared[0]["provenance"]["dirty"]:
            raise ValueError(
                f"the runs of {variant} in {folder} differ in more than seed and rate, or were not of a commit"
            )
        text = json.dumps({**shared[0], "runs": sorted(rows, key=lambda row: (row["density"], row["seed"]))}, indent=1)
        (RECORDS / f"{variant}.json").write_text(text + "\n")


def _row(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run, taken out of it with all that may differ between runs and where files were."""
    config = run["config"]
    config["data"].update(root=None, cache_dir=None)
    del config["seed"]
    prune, density = config["methods"]["prune"], 1.0
    if prune is not None:
        density = (1 - prune["sparsity"].pop("rate")) ** prune["sparsity"]["rounds"]
    cost = {key: run["cost"][key] for key in ("nonzeros", "sparsity", "packed_bytes")}
    return {
        "seed": run["seed"],
        "density": round(density, 4),
        "metrics": run["metrics"],
        "cost": cost,
        "time": run["provenance"].pop("time"),
        "wall_seconds": run["wall_seconds"],
    }


def load() -> tuple[Found, int]:
    """Test accuracies in the records, and how many epochs a training has."""
    found: Found = {}
    half = 0
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        cells: dict[float, dict[int, float]] = defaultdict(dict)
        for run in record["runs"]:
            cells[run["density"]][run["seed"]] = 100 * run["metrics"]["test/accuracy"]
        found[path.stem] = cells
        half = record["config"]["epochs"] if path.stem == "dense" else half
    return found, half


def accuracies(found: Found, densities: Sequence[float]) -> list[str]:
    """The rows of what each variant has at each density."""
    rows = [["", *(f"{density:g}" for density in densities)]]
    for variant in (variant for variant in STYLES if variant in found):
        cells = found[variant]
        rows.append([STYLES[variant][0], *(mean(list(cells[at].values())) if at in cells else "" for at in densities)])
    dense = list(found["dense"][1.0].values())
    return table([*rows, ["nothing removed, first training only", *[mean(dense)] * len(densities)]])


def differences(found: Found, densities: Sequence[float]) -> list[str]:
    """The rows of the published ordering, pair by pair."""
    rows = [["", *(f"{density:g}" for density in densities)]]
    for better, worse in PUBLISHED if "iterative" in found else PUBLISHED[:-1]:
        cells = []
        for at in densities:
            pair = [found[variant].get(at, {}) for variant in (better, worse)]
            cells.append(verdict([pair[0][seed] - pair[1][seed] for seed in pair[0] if seed in pair[1]]))
        rows.append([f"{STYLES[better][0]} > {STYLES[worse][0]}", *cells])
    return table(rows)


def verdict(gaps: Sequence[float]) -> str:
    """Mean and standard error of the gaps, and whether they are above zero."""
    if len(gaps) < 2:
        return ""
    mean, error = float(np.mean(gaps)), float(stats.sem(gaps))
    sure = abs(mean) > stats.t.ppf(0.975, len(gaps) - 1) * error
    word = ("yes" if mean > 0 else "reversed") if sure else "not decided"
    return f"{mean:+.2f} ± {error:.2f}, {word}"


def plot(found: Found, densities: Sequence[float]) -> None:
    """Accuracy over density, a line for each variant, bars of a standard deviation over seeds."""
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    dense = list(found["dense"][1.0].values())
    middle, spread = float(np.mean(dense)), float(np.std(dense, ddof=1))
    axes.axhline(middle, color="tab:gray", linewidth=1, label="nothing removed, first training only")
    axes.axhspan(middle - spread, middle + spread, color="tab:gray", alpha=0.15)
    for index, variant in enumerate(variant for variant in STYLES if variant in found):
        name, color, marker = STYLES[variant]
        cells = {at: list(each.values()) for at, each in sorted(found[variant].items())}
        means, bars = [np.mean(each) for each in cells.values()], [np.std(each, ddof=1) for each in cells.values()]
        places = [at * 1.012 ** (index - 2) for at in cells]  # side by side, so that no bar hides another
        axes.errorbar(places, means, bars, color=color, marker=marker, capsize=3, label=name)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(FixedLocator(list(densities)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("density: share of the weights that stays")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=9)
    count = len(found["lr_rewinding"][densities[0]])
    axes.set_title(f"LeNet-300-100 on MNIST, {count} seeds, bars: one standard deviation", fontsize=10)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first row its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def mean(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("runs", nargs="?", type=Path, help="folder of finished runs, to make the records of")
    options = parser.parse_args()
    if options.runs is not None:
        gather(options.runs)
    found, half = load()
    densities = sorted(found["lr_rewinding"], reverse=True)
    count = len(found["lr_rewinding"][densities[0]])
    sections = [
        HEAD.format(half=half, count=count),
        "\n".join(accuracies(found, densities)),
        DIFFERENCES.format(count=count),
        "\n".join(differences(found, densities)),
    ]
    TABLE.write_text("\n\n".join(sections) + "\n")
    print(TABLE.read_text())
    plot(found, densities)


if __name__ == "__main__":
    main()
