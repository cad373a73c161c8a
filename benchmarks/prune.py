"""Channel pruning of a trained network against Torch-Pruning as its README shows: accuracy at equal measured latency.

    lightning-compress train experiment=deploy/resnet20_dense speed.compile=true
    python benchmarks/prune.py runs/deploy/resnet20_dense --record reports/records/prune/resnet20.json

Needs LIGHTNING_COMPRESS_DATA and pip install torch-pruning. At each ratio Torch-Pruning removes that share of every
group's channels at once (L2 norm over the group, rounded to 8, the classifier whole); ours go at once too, by the norm
in all layers that write or read them. All networks, its four and the candidates of ours, are exported and timed on ONNX
Runtime in turn, round by round. Of the candidates as fast as the peer's network, up to what one network measured twice
differs by (of all that are not slower, if there are none), ours is the one with the largest product of its layers'
widths, that is without a bottleneck; it is timed again beside the peer's for the record. Then both have the same epochs
on the same batches with the same optimizer and schedule, for each seed. The test split is read once by each trained
network. Beside it stands what moving masks would add to a step of gradual pruning. The same command goes on where it
was stopped.
"""

import argparse
import copy
import json
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch_pruning as tp
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact
from lightning_compress.core.schedule import Cosine, Polynomial, learning_rate
from lightning_compress.core.task import classification
from lightning_compress.cost.macs import macs
from lightning_compress.export import latency, onnx, runtime
from lightning_compress.module import CompressionModule
from lightning_compress.prune.method import Prune
from lightning_compress.run import build, measure
from lightning_compress.run.result import Result
from lightning_compress.tracking.provenance import provenance

ROUND = 8
#: Removed of the first, second and third stage's channels, then of what is left inside the blocks.
Shares = tuple[float, ...]
STAGES = ((0, 0.5), (0, 0.25, 0.5, 0.75), (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75))
CANDIDATES: list[Shares] = list(product(*STAGES, (0, 0.25, 0.5)))[1:]
#: What the latencies of one network, measured twice, differ by.
TWICE = 1.01


def prune(shares: Shares) -> Prune:
    """Ours."""
    *stages, inside = shares
    kept = {f"layer{stage}.*conv1$": (1 - share) * (1 - inside) for stage, share in enumerate(stages, 1)}
    kept |= {"layer2": 1 - stages[1], "layer3": 1 - stages[2], "": 1 - stages[0]}
    return Prune({name: 1 - share for name, share in kept.items()}, pattern="channel", round_to=ROUND, score="group")


def peers(dense: nn.Module, example: torch.Tensor, ratio: float) -> nn.Module:
    """Torch-Pruning's network."""
    model = copy.deepcopy(dense)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1:]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    options = {"pruning_ratio": ratio, "ignored_layers": last, "round_to": ROUND}
    tp.pruner.BasePruner(model, example, importance=importance, **options).step()
    return model


def cut(dense: nn.Module, example: torch.Tensor, shares: Shares) -> nn.Module:
    """Our network."""
    compressor = Compressor([prune(shares)])
    model = compressor.attach(copy.deepcopy(dense), example)
    compressor.prepare(model, [], trains=False)
    return compressor.finalize(model, example).model


def milliseconds(models: dict[str, nn.Module], inputs: torch.Tensor, rounds: int) -> dict[str, float]:
    """Of a batch of `inputs` through each network in ONNX Runtime, on one thread, relative to "dense"."""
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for number, (name, model) in enumerate(models.items()):
            plain = copy.deepcopy(model).eval().requires_grad_(False)
            file = onnx.export(Compact(plain, {}), inputs, Path(folder) / f"{number}.onnx")
            calls[name] = partial(runtime.session(file, threads=1), inputs.numpy())
        bench = latency.Bench("onnxruntime", runtime.device_name(), 1, len(inputs))
        found = latency.measure(calls, reference="dense", bench=bench, rounds=rounds)
    return {name: one.ratio for name, one in found.items()}


def train(model: nn.Module, data: Any, seed: int, epochs: int, lr: float) -> nn.Module:
    """The finalized network after fine-tuning."""
    pl.seed_everything(seed, verbose=False)
    module = CompressionModule(
        copy.deepcopy(model).train().requires_grad_(True),
        classification(data.num_classes),
        example=data.example,
        optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
        scheduler=partial(learning_rate, schedule=Cosine(first=1.0, last=0.0)),
        channels_last=True,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, limit_val_batches=0, **quiet)
    trainer.fit(module, datamodule=data)
    return module.finalize().model


def overhead(dense: nn.Module, data: Any, steps: int = 60) -> float:
    """What moving the masks every 10 steps takes, as a share of the training step."""
    pl.seed_everything(0, verbose=False)
    method = Prune(Polynomial(last=0.5), pattern="channel", round_to=ROUND)
    compressor = Compressor([method])
    model = compressor.attach(copy.deepcopy(dense), data.example).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compressor.horizon = steps
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    whole, moving = 0.0, 0.0
    for (inputs, targets, *_), _ in zip(data.train_dataloader(), range(steps), strict=False):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        middle = time.perf_counter()
        compressor.update(model)
        moving += time.perf_counter() - middle
        whole += time.perf_counter() - start
    return moving / whole


def widths(model: nn.Module) -> tuple[int, ...]:
    """Channels of every convolution."""
    return tuple(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))


def chosen(dense: nn.Module, example: torch.Tensor, ratios: list[float], inputs: torch.Tensor) -> list[dict[str, Any]]:
    """For each ratio the peer's latency and the candidate that it is held against."""
    others = {f"peer {ratio}": peers(dense, example, ratio) for ratio in ratios}
    sizes = [sum(macs(model, example).values()) for model in others.values()]
    cuts = {shares: cut(dense, example, shares) for shares in CANDIDATES}
    shapes = {
        widths(model): shares  # rounding makes the same of several
        for shares, model in cuts.items()
        if 0.8 * min(sizes) <= sum(macs(model, example).values()) <= 1.2 * max(sizes)
    }
    ours = {str(shares): cuts[shares] for shares in shapes.values()}
    taken = milliseconds({"dense": dense, **others, **ours}, inputs, rounds=10)
    best = {}
    for ratio in ratios:
        beside_peer = {shape: taken[str(shares)] / taken[f"peer {ratio}"] for shape, shares in shapes.items()}
        fitting = [shape for shape, share in beside_peer.items() if share <= TWICE]
        as_fast = [shape for shape in fitting if beside_peer[shape] >= 1 / TWICE]
        best[ratio] = shapes[max(as_fast or fitting, key=lambda shape: sum(map(math.log, shape)))]
    ours = {str(shares): cuts[shares] for shares in best.values()}
    taken = milliseconds({"dense": dense, **others, **ours}, inputs, rounds=30)

    def row(name: str, model: nn.Module) -> dict[str, Any]:
        size = sum(macs(model, example).values())
        return {"latency_ratio": taken[name], "macs": size, "widths": widths(model), "accuracy": {}}

    return [
        {
            "ratio": ratio,
            "peer": row(f"peer {ratio}", others[f"peer {ratio}"]),
            "ours": {**row(str(shares), cuts[shares]), "shares": shares},
        }
        for ratio, shares in best.items()
    ]


def beside(call: Callable[..., float], many: list[tuple[Any, ...]], workers: int) -> Iterator[tuple[Any, float]]:
    """Each of `many` with what `call` gives for it, as it comes, from forks of this process: they have all it has."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work(worker: int) -> None:
        for place in range(worker, len(many), workers):
            queue.put((place, call(*many[place])))

    for worker in range(workers):
        context.Process(target=work, args=(worker,), daemon=True).start()
    for _ in many:
        place, value = queue.get()
        yield many[place], value


def compare(row: dict[str, Any]) -> None:
    """Add what ours is ahead by, and print it."""
    peer, ours = row["peer"], row["ours"]
    gains = [value - peer["accuracy"][seed] for seed, value in ours["accuracy"].items()]
    row["gain"] = statistics.mean(gains)
    row["standard_error"] = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    means = [statistics.mean(side["accuracy"].values()) for side in (peer, ours)]
    print(
        f"ratio {row['ratio']}: latency {peer['latency_ratio']:.3f} and {ours['latency_ratio']:.3f} of dense, "
        f"Torch-Pruning {means[0]:.2%}, ours {means[1]:.2%}, gain {row['gain']:.2%} ± {row['standard_error']:.2%}"
    )


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path, help="folder of the dense run")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.35, 0.5, 0.65])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument(
        "--workers", type=int, default=1, help="trainings side by side, once the latencies are measured"
    )
    parser.add_argument("--record", type=Path, required=True, help="kept up to date; one that is not done goes on")
    asked = parser.parse_args()
    config = Result.load(asked.dense).config
    data = build.data(config)
    node = build.architecture(config["model"], data)
    dense = build.model(node, seed=0, weights=str(asked.dense / "weights.pt"))
    task = classification(data.num_classes)

    def right(model: nn.Module) -> float:
        return measure.evaluate(model, data.test_dataloader(), task, "test")["test/accuracy"]

    def keep() -> None:
        asked.record.parent.mkdir(parents=True, exist_ok=True)
        asked.record.write_text(json.dumps(record, indent=1) + "\n")

    if asked.record.exists():
        record = json.loads(asked.record.read_text())
    else:
        inputs = next(iter(data.val_dataloader()))[0][:64].contiguous()
        record = {
            "dense": right(dense),
            "mask_overhead": overhead(dense, data),
            "settings": {"epochs": asked.epochs, "lr": asked.lr, "torch_pruning": version("torch-pruning")},
            "rows": chosen(dense, data.example, asked.ratios, inputs),
            "provenance": provenance(),
        }
        keep()
    print(f"dense {record['dense']:.2%}, moving masks takes {record['mask_overhead']:.2%} of a step")
    starts: dict[tuple[int, str], nn.Module] = {}
    for place, row in enumerate(record["rows"]):
        print("\n".join(f"ratio {row['ratio']}: {row[side]}" for side in ("peer", "ours")), flush=True)
        starts[place, "peer"] = peers(dense, data.example, row["ratio"])
        starts[place, "ours"] = cut(dense, data.example, tuple(row["ours"]["shares"]))

    def trained(place: int, side: str, seed: int) -> float:
        batches = build.data({**config, "seed": seed})
        return right(train(starts[place, side], batches, seed, record["settings"]["epochs"], record["settings"]["lr"]))

    rows = record["rows"]
    todo = [(*start, seed) for start, seed in product(starts, asked.seeds)]
    todo = [(place, side, seed) for place, side, seed in todo if str(seed) not in rows[place][side]["accuracy"]]
    for (place, side, seed), found in beside(trained, todo, asked.workers):
        rows[place][side]["accuracy"][str(seed)] = found
        print(f"ratio {rows[place]['ratio']}, seed {seed}: {side} {found:.2%}", flush=True)
        keep()
    for row in rows:
        compare(row)
    keep()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
