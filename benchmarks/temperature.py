"""Temperature and bits: what a teacher does for a student at full precision and for one of 3-bit weights.

    lightning-compress train experiment=distill/temperature_teacher speed.threads=1 measure.latency=false \
      --out runs/teacher
    python benchmarks/temperature.py --list runs 0 1 2 | sh   # a run for each student and seed, one after another
    python benchmarks/temperature.py runs                     # the records, and what is below
    python benchmarks/temperature.py                          # table and figure from the records

Intel Distiller's grid (examples/quantization/quant_aware_train/preact_resnet_cifar_dorefa.yaml in its repository)
weighs labels 0.3 and the teacher 0.7. So do these runs, with the KL divergence times T^2 and without; beside both are
a student without a teacher, and one that has no teacher either but whose labels weigh 0.3: that is where the unscaled
loss must end as T grows. All of it once more with a learning rate ten times as high, which the students alone survive.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from seeds import mean, table
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.distill import logits
from lightning_compress.run import build, teaching

RECORDS = Path("reports/records/temperature")
TABLE, PLOT = Path("reports/tables/temperature.md"), Path("reports/tables/temperature.png")
TEMPERATURES = (1, 2, 5, 10)
#: Experiment, overrides and title of each set of students.
SETTINGS: dict[str, tuple[str, list[str], str]] = {
    "temperature": ("temperature", [], "full precision"),
    "temperature_w3a8": ("temperature_w3a8", [], "3-bit weights, 8-bit activations (DoReFa)"),
    "temperature_fast": ("temperature", ["optimizer.lr=1.0"], "full precision, learning rate 1"),
    "temperature_w3a8_fast": ("temperature_w3a8", ["optimizer.lr=1.0"], "3 and 8 bits, learning rate 1"),
}
LOSSES = {"kl": ("KL times T^2", "tab:blue", "o"), "kl_unscaled": ("KL unscaled", "tab:orange", "s")}
ALONE = {"alone": ("no teacher", "tab:gray", "-"), "less": ("no teacher, labels weigh 0.3", "tab:green", "--")}
#: ResNet-20 from ResNet-32, mean of four runs: no teacher, T = 1, 2, 5.
PUBLISHED = {"temperature": (92.13, 92.38, 92.78, 93.17), "temperature_w3a8": (91.44, 91.64, 90.92, 80.00)}
HEAD = """\
# Temperature and bits

A small convnet and its wider teacher, MNIST at 14 x 14 pixels, `experiments/distill/temperature*.yaml`: labels
weigh 0.3, the teacher 0.7. Test accuracy in % after the last of {epochs} epochs, read once, mean ± standard deviation
over {count} seeds. Published: Intel Distiller, preactivation ResNet-20 from ResNet-32, 200 epochs.
`python benchmarks/temperature.py` makes this from `records/temperature/` and says how those were made."""
LENGTHS = """\
Length of each term's gradient at a sample's logits, weighed by 0.3 and 0.7, mean over validation samples."""
#: Test accuracies in % by setting, student (a loss and its temperature, or one of `ALONE`) and seed.
Found = dict[str, dict[str, dict[int, float]]]


def students() -> dict[str, list[str]]:
    """The overrides of each student."""
    varied = {
        f"{loss}-{temperature}": [f"+methods.distill.loss={loss}", f"methods.distill.temperature={temperature}"]
        for temperature in TEMPERATURES
        for loss in LOSSES
        if temperature > 1 or loss == "kl"  # with T = 1 both are the same
    }
    return {"alone": ["methods.distill=null"], "less": ["methods.distill.weight=0"], **varied}


def commands(runs: Path, seeds: list[int]) -> list[str]:
    """A command for each run, seed by seed."""
    shared = (
        f"data.cache_dir={runs / 'cache'} teacher.weights={runs / 'teacher/weights.pt'} "
        f"teacher.outputs={runs / 'outputs'} speed.threads=1 measure.latency=false"
    )
    return [
        f"lightning-compress train experiment=distill/{experiment} {' '.join([*common, *own])} seed={seed} {shared} "
        f"--out {runs / f'{setting}-{student}-{seed}'}"
        for seed in seeds
        for student, own in students().items()
        for setting, (experiment, common, _) in SETTINGS.items()
    ]


def gather(runs: Path) -> None:
    """Write the records: for each setting once what all its students share, and the figures of each; the gradients.

    Raises:
        ValueError: runs differ in more than they should, or their code was not committed.
    """
    RECORDS.mkdir(parents=True, exist_ok=True)
    for setting in SETTINGS:
        found = []
        for path in sorted(runs.glob(f"{setting}-*/result.json")):
            run = json.loads(path.read_text())
            row = _row(run, path.parent)
            found.append((row, {key: run[key] for key in ("schema", "name", "config", "provenance")}))
        write_record(RECORDS / f"{setting}.json", found)
    text = json.dumps(gradients(runs / "temperature-alone-0"), indent=1)
    (RECORDS / "gradients.json").write_text(text + "\n")


def write_record(path: Path, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Write what runs share, which stands beside each one's row, once, and the rows.

    Raises:
        ValueError: they do not share it, or the code was not committed.
    """
    shared = found[0][1]
    if any(one != shared for _, one in found) or shared["provenance"]["dirty"]:
        raise ValueError(f"the runs of {path.stem} differ in more than their rows say, or were not of a commit")
    path.write_text(json.dumps({**shared, "runs": [row for row, _ in found]}, indent=1) + "\n")


def _row(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The figures of a run, taken out of it with all that may differ between runs and where files were."""
    config = run["config"]
    config["data"].update(root=None, cache_dir=None)
    config["teacher"].update(weights=None, outputs=None)
    del config["seed"]
    return {
        "student": folder.name.split("-", 1)[1].rsplit("-", 1)[0],
        "seed": run["seed"],
        "distill": config["methods"].pop("distill"),
        "metrics": run["metrics"],
        "time": run["provenance"].pop("time"),
        "teacher": run["provenance"].pop("teacher", None),
        "wall_seconds": run["wall_seconds"],
    }


def gradients(folder: Path) -> dict[str, dict[str, float]]:
    """Length of each term's gradient at a sample's logits, weighed as in the runs, mean over validation samples.

    Taken before and after the training of the student without a teacher whose run is in `folder`.
    """
    config = json.loads((folder / "result.json").read_text())["config"]
    data = build.data(config)
    data.setup("fit")
    inputs, targets, *_ = next(iter(data.val_dataloader()))
    node = build.architecture(config["model"], data)
    with torch.no_grad():
        teacher = teaching.load_teacher(config, data, folder, _untrained).eval()(inputs)
        students = {
            "start": build.model(node, seed=config["seed"]).train()(inputs),
            "end": build.model(node, seed=config["seed"], weights=str(folder / "weights.pt")).eval()(inputs),
        }
    found: dict[str, dict[str, float]] = {}
    for when, outputs in students.items():
        found[when] = {"labels": _length(outputs, lambda own: 0.3 * F.cross_entropy(own, targets))}
        for name in LOSSES:
            for temperature in TEMPERATURES:
                term = getattr(logits, name)
                length = _length(outputs, lambda own, t=temperature, f=term: 0.7 * f(own, teacher, float(t)))
                found[when][f"{name}-{temperature}"] = length
    return found


def _untrained(*_: Any) -> None:
    raise ValueError("the runs have no teacher.weights")


def _length(outputs: Tensor, term: Any) -> float:
    own = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(term(own), own)
    return float(slope.norm(dim=1).mean()) * len(own)


def load() -> Found:
    """Test accuracies in the records."""
    found: Found = {}
    for setting in SETTINGS:
        cells: dict[str, dict[int, float]] = defaultdict(dict)
        for run in json.loads((RECORDS / f"{setting}.json").read_text())["runs"]:
            cells[run["student"]][run["seed"]] = 100 * run["metrics"]["test/accuracy"]
        found[setting] = cells
    return found


def accuracies(found: Found) -> list[str]:
    """The rows of what each student has, and of the published grid."""
    rows = [["", "no teacher", "labels x 0.3", *(f"T = {temperature}" for temperature in TEMPERATURES)]]
    for setting, (*_, title) in SETTINGS.items():
        for loss, (name, *_) in LOSSES.items():
            taught = [f"{'kl' if at == 1 else loss}-{at}" for at in TEMPERATURES]
            cells = [found[setting][student] for student in ("alone", "less", *taught)]
            rows.append([f"{title}, {name}", *(mean(list(each.values())) for each in cells)])
        if setting in PUBLISHED:
            alone, *others = PUBLISHED[setting]
            rows.append([f"{title}, published", f"{alone:.2f}", "", *(f"{value:.2f}" for value in others), ""])
    return table(rows)


def lengths() -> list[str]:
    """The rows of the gradients."""
    found = json.loads((RECORDS / "gradients.json").read_text())
    rows = [["", "labels", *(f"T = {temperature}" for temperature in TEMPERATURES)]]
    for when, title in (("start", "before training"), ("end", "after training without a teacher")):
        for loss, (name, *_) in LOSSES.items():
            cells = [found[when]["labels"], *(found[when][f"{loss}-{at}"] for at in TEMPERATURES)]
            rows.append([f"{title}, {name}", *(f"{cell:.3f}" for cell in cells)])
    return table(rows)


def plot(found: Found) -> None:
    """Accuracy over temperature, a panel for each setting, bars of a standard deviation over seeds."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    for axes, (setting, (*_, title)) in zip(panels.flat, SETTINGS.items(), strict=True):
        _panel(axes, found[setting])
        axes.set_title(title, fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy, %")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})


def _panel(axes: Axes, cells: dict[str, dict[int, float]]) -> None:
    for student, (name, color, line) in ALONE.items():
        values = list(cells[student].values())
        middle, spread = np.mean(values), np.std(values, ddof=1)
        axes.axhline(middle, color=color, linestyle=line, linewidth=1, label=name)
        axes.axhspan(middle - spread, middle + spread, color=color, alpha=0.12)
    for side, (loss, (name, color, marker)) in enumerate(LOSSES.items()):
        values = [list(cells[f"{'kl' if at == 1 else loss}-{at}"].values()) for at in TEMPERATURES]
        places = [at * math.exp(0.03 * (2 * side - 1)) for at in TEMPERATURES]
        bars = [np.std(each, ddof=1) for each in values]
        axes.errorbar(
            places, [np.mean(each) for each in values], bars, color=color, marker=marker, capsize=3, label=name
        )
    axes.set_xscale("log")
    axes.set_xticks(TEMPERATURES, [str(at) for at in TEMPERATURES])
    axes.minorticks_off()
    axes.set_xlabel("temperature T")
    axes.grid(alpha=0.3)


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("runs", nargs="?", type=Path, help="folder of finished runs, to make the records of")
    parser.add_argument("seeds", nargs="*", type=int, help="with --list")
    parser.add_argument("--list", action="store_true", help="print the commands of the runs")
    options = parser.parse_args()
    if options.list:
        print("\n".join(commands(options.runs, options.seeds)))
        return
    if options.runs is not None:
        gather(options.runs)
    found = load()
    shared = json.loads((RECORDS / "temperature.json").read_text())["config"]
    head = HEAD.format(epochs=shared["epochs"], count=len(found["temperature"]["alone"]))
    parts = {head: accuracies(found), LENGTHS: lengths()}
    TABLE.write_text("\n\n".join("\n\n".join([text, "\n".join(rows)]) for text, rows in parts.items()) + "\n")
    print(TABLE.read_text())
    plot(found)


if __name__ == "__main__":
    main()
