"""Training-step time of each method alone and together, against bare PyTorch loops doing the same work.

    python benchmarks/step_time.py --model resnet20 --data cifar10 --compile   # needs LIGHTNING_COMPRESS_DATA
    python benchmarks/step_time.py --model lenet_300_100 --data mnist --fit 300

Rows are timed in turn inside one process, round by round, so that the ratios hold when the machine's speed drifts;
the time of each row's first steps, where compilation happens, is printed apart. `--fit` also times whole epochs through
`pl.Trainer` against the bare loop, which shows what Lightning adds per step.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.method import Method
from lightning_compress.core.schedule import Polynomial
from lightning_compress.distill.method import Distill
from lightning_compress.distill.teacher import Teacher
from lightning_compress.module import CompressionModule
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run import build, config, device
from lightning_compress.tracking.provenance import provenance

sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
Make = Callable[[], nn.Module]


def rows(make_teacher: Make, *, compiled: bool) -> dict[str, Callable[[], list[Method]]]:
    """The methods of each row; the teacher is a network of the student's own shape."""

    def prune() -> Method:
        return Prune(Polynomial(last=0.8))

    def quantize() -> Method:
        return Quantize(8, 8)

    def distill(cache: bool) -> Method:
        return Distill(Teacher(make_teacher(), cache=cache, compile=compiled))

    return {
        "dense": list,
        "+KD, cached teacher": lambda: [distill(True)],
        "+KD, live teacher": lambda: [distill(False)],
        "+prune": lambda: [prune()],
        "+QAT": lambda: [quantize()],
        "all, cached teacher": lambda: [prune(), quantize(), distill(True)],
        "all, live teacher": lambda: [prune(), quantize(), distill(False)],
    }


def bare(model: nn.Module, batches: Iterator[Any], *, compiled: bool) -> Callable[[], None]:
    """A step of a plain loop over a model that is in training mode."""
    call: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
    optimizer = sgd(model.parameters())

    def step() -> None:
        inputs, targets, *_ = next(batches)
        loss = F.cross_entropy(call(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(module: CompressionModule, batches: Iterator[Any]) -> Callable[[], None]:
    """A step of ours without Lightning around it."""
    optimizer = sgd(module.model.parameters())
    module.compressor.horizon = 1_000_000
    module.train()
    module.compressor.prepare(module.model, [next(batches)])

    def step() -> None:
        loss = module.training_step(next(batches), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.compressor.update(module.model)

    return step


def timed(step: Callable[[], None], number: int) -> float:
    """Milliseconds a step."""
    start = time.perf_counter()
    for _ in range(number):
        step()
    return (time.perf_counter() - start) / number * 1e3


def fit_time(module: CompressionModule, data: Any, steps: int) -> float:
    """Milliseconds a step of `pl.Trainer.fit`, its own set-up left out."""
    marks: list[float] = []

    class Clock(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            marks.append(time.perf_counter())

        def on_train_epoch_end(self, *_: Any) -> None:
            marks.append(time.perf_counter())

    trainer = pl.Trainer(
        max_epochs=2, limit_train_batches=steps, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", callbacks=[Clock()],
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return (marks[-1] - marks[-2]) / steps * 1e3


def report(samples: dict[str, list[float]], warm: dict[str, float]) -> dict[str, dict[str, float]]:
    """Print and return medians and ratios to the dense row."""
    table = {}
    for name, values in samples.items():
        ratio = statistics.median(value / dense for value, dense in zip(values, samples["dense"], strict=True))
        table[name] = {"ms": statistics.median(values), "ratio_to_dense": ratio, "first_steps_s": warm[name]}
        print(f"{name:24s} {table[name]['ms']:9.2f} ms/step  {ratio:5.2f} x dense   first 4 steps {warm[name]:6.1f} s")
    return table


def main() -> None:
    """Print the table and, with --out, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps a round")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fit", type=int, default=0, metavar="STEPS")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    composed = config.compose([f"data={options.data}", f"model={options.model}"])
    composed["data"].pop("augment", None)  # cached teacher outputs need samples that stay as they are
    data = build.data(composed)
    data.setup("fit")
    node = build.architecture(composed["model"], data)
    make = build.builder(node, composed)
    table_rows = rows(build.builder(node, {**composed, "seed": 1}), compiled=options.compile)
    layout = device.channels_last(None, make())
    memory = torch.channels_last if layout else torch.contiguous_format
    task = build.task(composed, data)

    def endless() -> Iterator[Any]:
        # A few batches over and over: after the first steps a cached teacher has seen all of them.
        return chain.from_iterable(repeat(list(islice(data.train_dataloader(), 4))))

    def module(methods: list[Method]) -> CompressionModule:
        return CompressionModule(
            make(), task, methods, example=data.example, optimizer=sgd, compile_model=options.compile,
            channels_last=layout,
        )  # fmt: skip

    steps = {"bare loop, dense": bare(make().to(memory_format=memory), endless(), compiled=options.compile)}
    steps |= {name: ours(module(methods()), endless()) for name, methods in table_rows.items()}
    warm = {name: timed(step, 4) * 4 / 1e3 for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            samples[name].append(timed(step, options.steps))
    print(f"{options.model} on {options.data}, compile={options.compile}, {torch.get_num_threads()} thread(s)")
    table = report(samples, warm)
    if options.fit:
        for name, methods in table_rows.items():
            per_step = fit_time(module(methods()), data, options.fit)
            beside = timed(steps[name if name != "dense" else "bare loop, dense"], options.fit)
            table[f"fit: {name}"] = {"ms": per_step, "ratio_to_bare": per_step / beside}
            print(
                f"Trainer.fit {name:24s} {per_step:7.2f} ms/step  {per_step / beside:5.2f} x the loop without Lightning"
            )
    if options.out:
        options.out.write_text(json.dumps({"table": table, "provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
