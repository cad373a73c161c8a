"""Hinton's MNIST students beside what Hinton, Vinyals and Dean (arXiv 1503.02531, section 3) print: records and table.

    lightning-compress train experiment=hinton2015/teacher speed.threads=1 measure.latency=false \
      --out runs/hinton2015/teacher
    for seed in 0 1 2; do for variant in hard distilled missing3; do
      lightning-compress train experiment=hinton2015/$variant seed=$seed speed.threads=1 measure.latency=false \
        --out runs/hinton2015/$variant-$seed
    done; done
    python benchmarks/transfer.py runs/hinton2015    # the records, one file a variant, and what is below
    python benchmarks/transfer.py                    # the table from the records

The runs do not read the test part. It is read here, once for each of them. What is added to the logits of classes that
a student was never shown is chosen on the validation part; the paper chose it on the test part.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.run import build
from lightning_compress.run.api import load
from lightning_compress.run.result import Result

RECORDS, TABLE = Path("reports/records/hinton2015"), Path("reports/tables/hinton2015.md")
#: The class that the paper leaves out, for which all students' errors are counted apart.
APART = 3
GRID = torch.arange(0, 200) / 10
#: By variant: what it is, and the published errors in 10,000, in all and of the 1,010 threes.
ROWS = {
    "teacher": ("teacher, 784-1200-1200-10, one run", "67", ""),
    "hard": ("student, 784-800-800-10, labels alone", "146", ""),
    "distilled": ("student, soft targets at T = 20", "74", ""),
    "missing3": ("the same, no 3 in the transfer set", "206", "133"),
    "missing3, shifted": ("... with the bias of 3 raised by {shift}", "109, by 3.5", "14"),
}
HEAD = """\
# Distillation on MNIST as in Hinton, Vinyals and Dean (arXiv 1503.02531)

`experiments/hinton2015/`: the teacher for {teacher} epochs, all students for {student}; 54,000 digits train, 6,000 are
held out for validation (the paper: 60,000 and none). Errors on the 10,000 digits of the test part, mean ± standard
deviation over {count} seeds of the student, all with one teacher. The bias of 3 is raised by what is best for
the validation part.
`python benchmarks/transfer.py` makes this from `records/hinton2015/` and says how those were made."""


def gather(folder: Path) -> None:
    """Write the records: once what all runs of a variant share, and the figures of each.

    Raises:
        ValueError: runs of a variant differ in more than the seed, or their code was not committed.
    """
    found = defaultdict(list)
    for path in sorted(folder.glob("*/result.json")):
        result = Result.load(path.parent)
        found[result.name.removeprefix("hinton2015/")].append((result, _row(result, path.parent)))
    RECORDS.mkdir(parents=True, exist_ok=True)
    for variant, runs in found.items():
        shared = [_shared(result) for result, _ in runs]
        if any(one != shared[0] for one in shared) or shared[0]["provenance"]["dirty"]:
            raise ValueError(f"the runs of {variant} in {folder} differ in more than the seed, or were not of a commit")
        rows = sorted((row for _, row in runs), key=lambda row: row["seed"])
        (RECORDS / f"{variant}.json").write_text(json.dumps({**shared[0], "runs": rows}, indent=1) + "\n")


def _shared(result: Result) -> dict[str, Any]:
    """What must be the same for all seeds, without where files were."""
    config, provenance = result.config, result.provenance
    config = {key: value for key, value in config.items() if key != "seed"}
    config["data"] = {**config["data"], "root": None, "cache_dir": None}
    provenance = {key: value for key, value in provenance.items() if key != "time"}
    return {"schema": result.schema, "name": result.name, "config": config, "provenance": provenance}


def _row(result: Result, folder: Path) -> dict[str, Any]:
    """The figures of a run, among them those of the test part, which is read here."""
    data = build.data(result.config)
    model = load(folder / result.files["packed"])
    hidden = list(result.config["data"].get("without", ()))
    logits, labels = _logits(model, data.val_dataloader())
    shift = best_shift(logits, labels, hidden) if hidden else None
    figures = _figures("val", logits, labels, hidden, shift)
    figures |= _figures("test", *_logits(model, data.test_dataloader()), hidden, shift)
    return {
        "seed": result.seed,
        "metrics": {**result.metrics, **figures, **({} if shift is None else {"shift": shift})},
        "cost": {key: result.cost[key] for key in ("params", "packed_bytes")},
        "time": result.provenance["time"],
        "wall_seconds": result.wall_seconds,
    }


@torch.no_grad()
def _logits(model: torch.nn.Module, batches: Any) -> tuple[Tensor, Tensor]:
    outputs = [(model(inputs), targets) for inputs, targets, *_ in batches]
    return torch.cat([logits for logits, _ in outputs]), torch.cat([targets for _, targets in outputs])


def _figures(
    split: str, logits: Tensor, labels: Tensor, hidden: Sequence[int], shift: float | None
) -> dict[str, float]:
    """Accuracy and errors, in all and of the class apart, as the model is and with the shift, if there is one."""
    shifts = {"": 0.0} if shift is None else {"": 0.0, "_shifted": shift}
    figures = {}
    for name, by in shifts.items():
        wrong = wrong_with(logits, labels, hidden, by)
        figures[f"{split}/accuracy{name}"] = 1.0 - float(wrong.float().mean())
        figures[f"{split}/errors{name}"] = int(wrong.sum())
        figures[f"{split}/errors_of_{APART}{name}"] = int(wrong[labels == APART].sum())
    return figures


def wrong_with(logits: Tensor, labels: Tensor, classes: Sequence[int], shift: float) -> Tensor:
    """Which answers are wrong with `shift` added to the logits of `classes`, bool `[N]`."""
    moved = logits.clone()
    moved[:, list(classes)] += shift
    return moved.argmax(1) != labels


def best_shift(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """The shift on the grid with the fewest errors; the one in the middle of those that are as good."""
    errors = torch.stack([wrong_with(logits, labels, classes, float(shift)).sum() for shift in GRID])
    best = GRID[errors == errors.min()]
    return round(float(best[len(best) // 2]), 1)


def table() -> str:
    """The page, of the records there are."""
    records = {path.stem: json.loads(path.read_text()) for path in RECORDS.glob("*.json")}
    figures = {variant: [run["metrics"] for run in record["runs"]] for variant, record in records.items()}
    shifts = [run["shift"] for run in figures["missing3"]]
    lines = [f"| | errors of 10,000 | published | of the 1,010 {APART}s | published |", "|---" * 5 + "|"]
    for row, (name, published, apart) in ROWS.items():
        variant, _, shifted = row.partition(", ")
        after = f"_{shifted}" if shifted else ""
        errors, threes = (
            [run[f"test/{of}{after}"] for run in figures[variant]] for of in ("errors", f"errors_of_{APART}")
        )
        named = name.format(shift=_mean(shifts))
        lines.append(f"| {named} | {_mean(errors)} | {published} | {_mean(threes)} | {apart} |")
    epochs = {variant: record["config"]["epochs"] for variant, record in records.items()}
    head = HEAD.format(teacher=epochs["teacher"], student=epochs["hard"], count=len(figures["hard"]))
    return f"{head}\n\n" + "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:g}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("runs", nargs="?", type=Path, help="folder of finished runs, to make the records of")
    options = parser.parse_args()
    if options.runs is not None:
        gather(options.runs)
    TABLE.write_text(table())
    print(TABLE.read_text())


if __name__ == "__main__":
    main()
