"""Eight ways to learn from others, and none, in the same CPU time: ResNet-20 teaches ResNet-8, CIFAR-10 at 16 x 16.

    lightning-compress train experiment=distill/teacher speed.threads=1 measure.latency=false --out runs/teacher
    python benchmarks/equal_budget.py runs --time 15             # what a step of each costs
    python benchmarks/equal_budget.py --list runs 0 1 2 | sh     # a run for each method and seed, one after another
    python benchmarks/equal_budget.py runs                       # the records, and what is below
    python benchmarks/equal_budget.py                            # table and figure from the records

The student alone has `EPOCHS` epochs of `BATCHES` batches; everybody else has as many as cost the same, by the CPU
time of a step, the teacher's forward pass in it. What the teacher's own training cost is not counted; that of an
assistant is: half of the budget. All have one recipe and, but for three, the published weights of their terms; the
last epoch counts, whatever validation says.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from seeds import mean, table, verdict
from step_time import ours, sgd
from temperature import write_record

from lightning_compress.module import CompressionModule
from lightning_compress.run import build, config, device
from lightning_compress.tracking.provenance import provenance

RECORDS = Path("reports/records/equal_budget")
TABLE, PLOT = Path("reports/tables/equal_budget.md"), Path("reports/tables/equal_budget.png")
#: Of the student alone, each of so many batches.
EPOCHS, BATCHES = 144, 25
FIRST = "assistant, its own training"
ASSISTANT = ["+model@teacher.assistants.first=resnet8", "teacher.assistants.first.depth=14"]
#: Overrides, name and the accuracy in arXiv 1902.03393 (ResNet-26 to ResNet-8, 80 epochs). The presets of attention and
#: boundary are for 32 x 32: one is a mean over positions, the other a sum, so here they weigh a quarter and fourfold.
#: With its published weight of 100, and with 30, FitNets' hint makes the loss NaN in the first epoch.
METHODS: dict[str, tuple[list[str], str, float | None]] = {
    "alone": ([], "no teacher", 86.02),
    "kl": (["distill=kl"], "outputs (KL, T = 4)", 86.66),
    "fitnet": (["distill=fitnet", "methods.distill.hints.fitnet.weight=10"], "FitNets, weight 10", 86.73),
    "attention": (
        ["distill=attention", "methods.distill.hints.attention.weight=250"],
        "attention, with outputs",
        86.86,
    ),
    "flow": (["distill=flow"], "FSP", 87.07),
    "boundary": (
        ["distill=boundary", "methods.distill.hints.boundary.weight.first=0.012"],
        "activation boundaries, then outputs",
        None,
    ),
    "similarity": (["distill=similarity"], "similarity of samples", None),
    "mutual": (["mutual=dml"], "mutual learning of two students", 87.71),
    "assistant": (["distill=kl", *ASSISTANT], "teacher assistant, ResNet-14", 88.01),
}

HEAD = """\
# Eight ways to learn from others, and none, in the same CPU time

ResNet-20 teaches ResNet-8, CIFAR-10 at 16 x 16 pixels, {count} seeds. The student alone has {steps} steps
of 64 images, {seconds:.0f} s of one core; the others as many steps as cost the same, the teacher's forward
pass counted, its own training not. Test accuracy in % after the last step, read once, mean ± standard deviation.
"Against no teacher": percentage points, mean ± standard error of what single seeds differ by; "yes" (better) and
"reversed" (worse) where the mean is beyond Student's 95 % point. Published: ResNet-26 to ResNet-8 in 80 epochs each,
at 32 x 32 (arXiv 1902.03393). `python benchmarks/equal_budget.py` makes this from `records/equal_budget/` and says
how those were made."""


def costs(runs: Path, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of a step and its ratio to the student's alone, medians over rounds in which all take turns."""
    networks = {FIRST: ["distill=kl", "model.depth=14"], "assistant": ["distill=kl", "teacher.model.depth=14"]}
    steps = {name: _step(networks.get(name, METHODS.get(name, ([],))[0]), runs) for name in [*METHODS, FIRST]}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.process_time()
            step()
            samples[name].append(1e3 * (time.process_time() - started))
    cells = {
        name: {
            "ms": statistics.median(values),
            "ratio": statistics.median(a / b for a, b in zip(values, samples["alone"], strict=True)),
        }
        for name, values in samples.items()
    }
    return {"provenance": provenance(), "rounds": rounds, "steps": cells}


def _step(overrides: list[str], runs: Path) -> Callable[[], None]:
    composed = config.compose(["experiment=distill/methods", *overrides, f"data.cache_dir={runs / 'cache'}"])
    data = build.data(composed)
    data.setup("fit")
    make = build.builder(build.architecture(composed["model"], data), composed)
    teacher = build.builder(build.architecture(composed["teacher"]["model"], data), {**composed, "seed": 1})
    layout = device.channels_last(None, make())
    module = CompressionModule(
        make(), build.task(composed, data), build.methods(composed, None, teacher, module=data), example=data.example,
        optimizer=sgd, channels_last=layout,
    )  # fmt: skip
    batches: Iterator[Any] = chain.from_iterable(repeat(list(islice(data.train_dataloader(), 4))))
    step = ours(module, batches)
    step()
    return step


def epochs() -> dict[str, dict[str, int]]:
    """How many epochs fit the budget: of the run, and of an assistant before it."""
    ratio = {name: cell["ratio"] for name, cell in json.loads((RECORDS / "steps.json").read_text())["steps"].items()}
    found = {name: {"epochs": round(EPOCHS / ratio[name])} for name in METHODS}
    half = EPOCHS / 2
    found["assistant"] = {"epochs": round(half / ratio["assistant"]), "teacher.epochs": round(half / ratio[FIRST])}
    return found


def commands(runs: Path, seeds: list[int]) -> list[str]:
    """A command for each run, seed by seed."""
    lines = []
    for seed in seeds:
        for name, lengths in epochs().items():
            overrides = [*METHODS[name][0], *(f"{key}={value}" for key, value in lengths.items())]
            lines.append(
                f"lightning-compress train experiment=distill/methods {' '.join(overrides)} seed={seed} "
                f"data.cache_dir={runs / 'cache'} teacher.weights={runs / 'teacher/weights.pt'} "
                f"teacher.folder={runs / 'assistants'} speed.threads=1 measure.latency=false "
                f"--out {runs / f'methods-{name}-{seed}'}"
            )
    return lines


def gather(runs: Path) -> None:
    """Write the records: for each method once what its runs share, and the figures of each."""
    for name in METHODS:
        found = []
        for path in sorted(runs.glob(f"methods-{name}-*/result.json")):
            run = json.loads(path.read_text())
            run["config"]["data"].update(root=None, cache_dir=None)
            run["config"]["teacher"].update(weights=None, folder=None)
            del run["config"]["seed"]
            row = {key: run[key] for key in ("seed", "metrics", "wall_seconds")}
            row |= {key: run["provenance"].pop(key, None) for key in ("time", "teacher")}
            found.append((row, {key: run[key] for key in ("schema", "name", "config", "provenance")}))
        write_record(RECORDS / f"{name}.json", found)


def load() -> dict[str, dict[int, float]]:
    """Test accuracies in % by method and seed."""
    return {
        name: {
            run["seed"]: 100 * run["metrics"]["test/accuracy"]
            for run in json.loads((RECORDS / f"{name}.json").read_text())["runs"]
        }
        for name in METHODS
    }


def rows(found: dict[str, dict[int, float]]) -> list[str]:
    """The table."""
    steps = json.loads((RECORDS / "steps.json").read_text())["steps"]
    lengths = epochs()
    lines = [["", "CPU of a step", "steps", "test accuracy", "against no teacher", "published", "against no teacher"]]
    plain = METHODS["alone"][2]
    for name, (_, title, published) in METHODS.items():
        own = lengths[name]
        cost, count = f"{steps[name]['ratio']:.2f}", f"{BATCHES * own['epochs']}"
        if "teacher.epochs" in own:
            cost, count = f"{steps[FIRST]['ratio']:.2f}, {cost}", f"{BATCHES * own['teacher.epochs']} + {count}"
        gaps = [value - found["alone"][seed] for seed, value in found[name].items()]
        values = mean(list(found[name].values()))
        against = "" if name == "alone" else verdict(gaps)
        line = [title, cost, count, values, against]
        lines.append([*line, *(["", ""] if published is None else [f"{published:.2f}", f"{published - plain:+.2f}"])])
    return table(lines)


def plot(found: dict[str, dict[int, float]]) -> None:
    """A bar for each method, a dot for each seed."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    places = np.arange(len(METHODS))[::-1]
    values = [list(found[name].values()) for name in METHODS]
    axes.barh(places, [np.mean(each) for each in values], color="tab:blue", alpha=0.4)
    for place, each in zip(places, values, strict=True):
        axes.plot(each, [place] * len(each), "k.", markersize=5)
    axes.axvline(float(np.mean(values[0])), color="tab:gray", linewidth=1)
    axes.set_yticks(places, [title for _, title, _ in METHODS.values()])
    axes.set_xlim(np.min(values) - 3, np.max(values) + 1)
    axes.set_xlabel("test accuracy, %, each in the same CPU time")
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("runs", nargs="?", type=Path, help="folder of finished runs, to make the records of")
    parser.add_argument("seeds", nargs="*", type=int, help="with --list")
    parser.add_argument("--list", action="store_true", help="print the commands of the runs")
    parser.add_argument("--time", type=int, metavar="ROUNDS", help="time the steps instead, in so many rounds")
    options = parser.parse_args()
    RECORDS.mkdir(parents=True, exist_ok=True)
    if options.time:
        (RECORDS / "steps.json").write_text(json.dumps(costs(options.runs, options.time), indent=1) + "\n")
        return
    if options.list:
        print("\n".join(commands(options.runs, options.seeds)))
        return
    if options.runs is not None:
        gather(options.runs)
    found = load()
    steps = json.loads((RECORDS / "steps.json").read_text())["steps"]
    budget = steps["alone"]["ms"] * EPOCHS * BATCHES / 1e3
    head = HEAD.format(count=len(found["alone"]), seconds=budget, steps=EPOCHS * BATCHES)
    TABLE.write_text("\n\n".join([head, "\n".join(rows(found))]) + "\n")
    print(TABLE.read_text())
    plot(found)


if __name__ == "__main__":
    main()
