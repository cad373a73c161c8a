"""A stand-in for training that keeps a worker's promises: results from a formula, files of the right names.

Everything is a function by name, as a real worker's are, so that any launcher can run it. What a test wants to go wrong
is in the config, as `broken: {trial-1: memory}` with a function of `breaks.py`, or in `BENCH` where all runs are run in
the test's own process.
"""

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.core.files import sha256
from lightning_compress.launch.inline import Inline
from lightning_compress.run.result import Result
from lightning_compress.sweep.runs import Tools
from lightning_compress.sweep.spec import StudySpec
from tests.sweep import breaks

if TYPE_CHECKING:
    from rich.console import Console

    from lightning_compress.sweep.record import StudyRecord

HERE = "tests.sweep.toy"
DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "epochs": 1,
    "seconds": 0.0,
    "model": {"width": 1.0},
    "bits": 32,
    "sparsity": 0.0,
    "kind": "plain",
    "share": 0.5,
    "weights": None,
    "broken": {},
    "teacher": {"model": None, "weights": None, "outputs": None},
    "measure": {"reference": None, "latency": True, "onnx": True, "table": None, "batch_size": 64, "threads": 1},
    "wandb": {
        "mode": "disabled",
        "project": "p",
        "group": None,
        "job_type": "train",
        "name": "run",
        "id": None,
        "tags": [],
    },
}


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Hydra in small: dotted keys that must exist, values as Hydra's parser reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    config: dict[str, Any] = {**DEFAULTS, **{k: dict(v) for k, v in DEFAULTS.items() if isinstance(v, dict)}}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        *parents, leaf = override.key_or_group.split(".")
        node = config
        for parent in parents:
            node = node.get(parent, {})
        if leaf not in node and not override.is_force_add():
            raise ValueError(f"no key {override.key_or_group!r}")
        node[leaf] = override.value()
    return config


TOOLS = Tools(compose, *(f"{HERE}:{name}" for name in ("trial", "timing", "test", "timing_priced")))


@dataclass
class Bench:
    """What was asked for in this process; `broken(config)` may raise or return numbers to put in."""

    broken: Callable[[dict[str, Any]], Mapping[str, float]] = lambda config: {}
    each_epoch: Callable[[int], None] = lambda number: None
    trained: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    epochs: list[tuple[str, int]] = field(default_factory=list)
    timed: list[str] = field(default_factory=list)
    tested: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    here: bool = True

    @property
    def tools(self) -> Tools:
        return TOOLS

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.trained]


BENCH = Bench()


def run_study(
    spec: StudySpec, bench: Bench, folder: Path, *, fresh: bool = False, console: "Console | None" = None
) -> "tuple[StudyRecord, list[str]]":
    """Run a study in this process, on `bench`; its record and the lines that were printed."""
    # Imported here, as a worker, which imports this file too, starts in a tenth of the time without them.
    from rich.console import Console

    from lightning_compress.sweep import engine
    from lightning_compress.sweep.progress import Progress

    global BENCH
    BENCH, out = bench, io.StringIO()
    progress = Progress(console or Console(file=out, width=200))
    found = engine.sweep(spec, bench.tools, Inline(), folder=folder, progress=progress, fresh=fresh)
    return found, out.getvalue().splitlines()


def trial(config: dict[str, Any], folder: str, rungs: list[int], patience: float) -> dict[str, Any]:
    """Train from the checkpoint on, one epoch after another, and ask at each rung."""
    place = Path(folder)
    if (place / "result.json").exists():
        return {"status": "done", "epoch": config["epochs"]}
    BENCH.trained.append((place.name, config))
    changes = {**BENCH.broken(config)}
    if place.name in config["broken"]:
        changes |= getattr(breaks, config["broken"][place.name])(place)
    mark = place / "checkpoint.json"
    first = json.loads(mark.read_text())["epoch"] if mark.exists() else 0
    for epoch in range(first, config["epochs"]):
        if epoch in rungs and not _asked(place, config, epoch, patience):
            return {"status": "paused", "epoch": epoch}
        BENCH.epochs.append((place.name, epoch + 1))
        BENCH.each_epoch(len(BENCH.epochs))
        time.sleep(config["seconds"])
        _write(mark, {"epoch": epoch + 1})
    _files(place)
    result = result_of(config, place.name, config["epochs"])
    result.metrics |= changes
    result.save(place)
    with (place.parent / "completed.txt").open("a") as file:
        file.write(f"{place.name}\n")
    return {"status": "done", "epoch": config["epochs"]}


def timing(folder: str, reference: str | None, record: str) -> None:
    """Add the latency to a record."""
    place = Path(folder)
    BENCH.timed.append(place.name)
    result = Result.load(place, record)
    width = result.config["model"]["width"]
    data = json.loads((place / record).read_text())
    data["cost"] |= {"latency_ms": 2 * width, "latency_ratio": width, "device": "a CPU", "runtime": "fake 1.0"}
    if result.config["measure"]["table"]:
        data["cost"]["latency_source"] = "predicted from cpu.json: off by 4%"
    _write(place / record, data)


def timing_priced(folder: str, reference: str | None) -> dict[str, Any] | None:
    """Measure what a table gave, on its device only."""
    place = Path(folder)
    BENCH.measured.append(place.name)
    files = {f"{name}_sha256": sha256(place / "model.onnx") for name in ("model", "dense")}
    numbers = dict.fromkeys(("latency_p10_ms", "latency_p90_ms", "dense_latency_ms"), 1.0)
    named = {"runtime": "fake 1.0, float kernels", "device": "a CPU", "threads": 1, "batch_size": 64}
    found = {"latency_ms": 3.5, "latency_ratio": 0.7, "latency_rounds": 30, **numbers, **named, **files}
    return found if BENCH.here else None


def test(folder: str, data: Any) -> None:
    """Read the test split, once."""
    place = Path(folder)
    BENCH.tested.append(place.name)
    _write(place / "test.json", {"test/accuracy": Result.load(place).get("val/accuracy") - 0.01})


def result_of(config: dict[str, Any], name: str, epoch: int = 1, status: str = "done") -> Result:
    """Wider and more bits: better, larger, slower; better with every epoch."""
    size = config["model"]["width"] * config["bits"] / 32 * (1 - config["sparsity"])
    loss = 0.1 * math.exp(-4 * size) + 0.5 * (1 / epoch - 1 / config["epochs"])
    return Result(
        name=name,
        status=status,
        metrics={"val/accuracy": 1 - loss - 0.001 * (config["seed"] % 7)},
        cost={
            "params": 1000,
            "nonzeros": int(1000 * (1 - config["sparsity"])),
            "sparsity": config["sparsity"],
            "macs": int(1000 * config["model"]["width"]),
            "relative_bops": size,
            "packed_bytes": int(100_000 * size) + 200,
            "dense_bytes": 100_200,
            "threads": 1,
            "batch_size": 64,
        },
        layers=[
            {
                "name": "conv",
                "kind": "Conv2d",
                "shape": [4, 1, 3, 3],
                "weight_bits": config["bits"],
                "activation_bits": 8,
                "sparsity": config["sparsity"],
                "macs": 10,
                "bytes": 36,
            }
        ],
        config=config,
        seed=config["seed"],
        provenance={"commit": "abc123", "dirty": True},
        wall_seconds=1.5,
        files={"packed": "model.lcz", "onnx": "model.onnx"},
        trial=int(name.removeprefix("trial-")) if name.startswith("trial-") else None,
    )


def _asked(place: Path, config: dict[str, Any], epoch: int, patience: float) -> bool:
    """Leave the rung's result, unless it is there, and wait for the verdict."""
    path, answer = place / f"rung-{epoch}.json", place / f"verdict-{epoch}.json"
    if not path.exists():
        _files(place)
        result = result_of(config, place.name, epoch, "paused")
        result.save(place, path.name)
    until = time.monotonic() + patience
    while not answer.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(0.002)
    return bool(json.loads(answer.read_text())["go"])


def _files(place: Path) -> None:
    for name in ("model.lcz", "model.onnx", "weights.pt"):
        (place / name).write_bytes(b"x" * 100)


def _write(path: Path, data: Any) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(data))
    partial.replace(path)
