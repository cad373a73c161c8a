"""A step of distillation from ResNet-20 to ResNet-8 on CIFAR-10 shapes, beside torchdistill's losses, and the cache.

    pip install --no-deps torchdistill==1.1.5   # it asks for torchvision, which its losses do not need
    python benchmarks/distill.py --out reports/records/distill/resnet.json

Eight losses, each on the same student, teacher, batch and optimizer, on one thread. Of torchdistill only the loss
modules run, on what plain forward hooks gather, the teacher in eval mode without gradients, in a bare loop: its own
hooks and the framework that its YAML files drive ask for torchvision, and would only add to its time. It is timed as it
ships, and in the memory format that run/device.py picks for us; ours in that one, with --compile compiled too. All rows
in turn, round by round; a ratio is the median over the rounds.

The second table is an epoch without and with the teacher's outputs kept, as milliseconds a step: ResNet-56 to ResNet-20
on CIFAR-10 shapes, and Hinton's 1200-1200 to 800-800 on MNIST shapes.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from step_time import ours, sgd
from torch import Tensor, nn
from torch.nn import functional as F
from torchdistill.losses import mid_level as peer

from lightning_compress.core.task import classification
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.distill.teacher import Teacher
from lightning_compress.export.latency import Bench, Latency, measure
from lightning_compress.models.mlp import MLP
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.module import CompressionModule
from lightning_compress.run import device
from lightning_compress.tracking.provenance import provenance

Step = Callable[[], None]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
LAYERS = ("layer1", "layer2", "layer3")
LOGITS = ("fc", "output", "fc", "output")


def _pair(name: str) -> dict[str, Any]:
    return {"io": "output", "path": name}


def hints(loss: str, *layers: str, together: bool = False) -> dict[str, Any]:
    """Arguments of our Distill for one loss on features."""
    names: list[str] = list(layers)
    made = [Hint(names, loss=loss)] if together else [Hint(name, loss=loss) for name in names]
    return {"loss": None, "labels": 1.0, "hints": {f"{loss}{number}": hint for number, hint in enumerate(made)}}


def rkd() -> dict[str, Any]:
    """Both terms, with the weights of the paper."""
    own = {"distance": Hint("pool", loss="distance", weight=25.0), "angle": Hint("pool", loss="angle", weight=50.0)}
    return {"loss": None, "labels": 1.0, "hints": own}


#: Our arguments, torchdistill's loss, the modules that it looks at, and whether it has the labels' term in it.
ROWS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], nn.Module], tuple[str, ...], bool]] = {
    "KD": (lambda: {}, lambda: peer.KDLoss(*LOGITS, temperature=4.0, alpha=0.1), ("fc",), True),
    "standardized KD": (
        lambda: {"loss": "kl_standardized"},
        lambda: peer.LogitStdKDLoss(*LOGITS, temperature=4.0, alpha=0.1),
        ("fc",),
        True,
    ),
    "DIST": (lambda: {"loss": "dist", "labels": 1.0}, lambda: peer.DISTLoss(*LOGITS, tau=4.0), ("fc",), False),
    "attention": (
        lambda: hints("attention", *LAYERS),
        lambda: peer.ATLoss({name: {"student": _pair(name), "teacher": _pair(name)} for name in LAYERS}),
        LAYERS,
        False,
    ),
    "similarity": (
        lambda: hints("similarity", "layer3"),
        lambda: peer.SPKDLoss("layer3", "layer3", reduction="batchmean"),
        ("layer3",),
        False,
    ),
    "PKT": (
        lambda: hints("pkt", "flatten"),
        lambda: peer.PKTLoss("flatten", "output", "flatten", "output"),
        ("flatten",),
        False,
    ),
    "RKD": (rkd, lambda: peer.RKDLoss("pool", "pool", 25.0, 50.0, reduction="mean"), ("pool",), False),
    "FSP": (
        lambda: hints("flow", *LAYERS, together=True),
        lambda: peer.FSPLoss(
            {
                f"{first}-{second}": {
                    f"{who}_{place}": _pair(name)
                    for who in ("student", "teacher")
                    for place, name in (("first", first), ("second", second))
                }
                for first, second in (LAYERS[:2], LAYERS[1:])
            }
        ),
        LAYERS,
        False,
    ),
}


def own(
    student: nn.Module,
    teacher: nn.Module,
    options: dict[str, Any],
    batch: Batch,
    *,
    compiled: bool,
    cache: bool = False,
) -> Step:
    """A step of ours."""
    last = batch[0].dim() == 4 and batch[0].is_contiguous(memory_format=torch.channels_last)
    method = Distill(Teacher(teacher, cache=cache, compile=compiled), **options)
    module = CompressionModule(
        student, classification(10), [method], example=batch[0][:2], optimizer=sgd,
        compile_model=compiled, channels_last=last,
    )  # fmt: skip
    return ours(module, repeat(batch))


def theirs(row: str, batch: Batch, layout: torch.memory_format) -> Step:
    """A step of torchdistill's loss."""
    _, make, names, labelled = ROWS[row]
    loss_of = make()
    inputs, targets = batch[0].contiguous(memory_format=layout), batch[1]
    student, teacher = ResNetCIFAR(8), ResNetCIFAR(20)
    student, teacher = student.to(memory_format=layout), teacher.to(memory_format=layout).eval().requires_grad_(False)
    seen: list[dict[str, Any]] = [{}, {}]
    for gathered, model in zip(seen, (student, teacher), strict=True):
        for name in names:
            model.get_submodule(name).register_forward_hook(partial(_gather, gathered, name))
    optimizer = sgd(student.parameters())

    def step() -> None:
        outputs = student(inputs)
        with torch.no_grad():
            teacher(inputs)
        loss = loss_of(*seen, targets=targets)
        loss = loss if labelled else loss + F.cross_entropy(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _gather(gathered: dict[str, Any], name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    gathered[name] = {"output": output}


def images(batch: int, *shape: int) -> Batch:
    """Random inputs and targets, as a batch that can be cached."""
    inputs = torch.randn(batch, *shape)
    if len(shape) == 3 and device.channels_last(None, ResNetCIFAR(8)):
        inputs = inputs.to(memory_format=torch.channels_last)
    return inputs, torch.randint(10, (batch,)), torch.arange(batch), torch.zeros(batch, dtype=torch.int64)


def losses(batch: Batch, rounds: int, *, compiled: bool) -> Iterator[tuple[str, dict[str, Latency]]]:
    """Each row's times, "theirs" the reference."""
    for row, (options, *_) in ROWS.items():
        steps = {"theirs": theirs(row, batch, torch.contiguous_format)}
        if batch[0].is_contiguous(memory_format=torch.channels_last):
            steps["theirs, channels last"] = theirs(row, batch, torch.channels_last)
        torch._dynamo.reset()  # of one class a few are compiled, then none
        for name in ["ours", "ours, compiled"][: 1 + compiled]:
            steps[name] = own(ResNetCIFAR(8), ResNetCIFAR(20), options(), batch, compiled="compiled" in name)
        yield row, measure(steps, reference="theirs", bench=_bench(batch), warmup=2, rounds=rounds)


def cache(rounds: int, size: int) -> Iterator[tuple[str, dict[str, Latency]]]:
    """Each pair's times without and with the teacher's outputs kept."""
    pairs: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Batch]] = {
        "ResNet-56 to ResNet-20": (lambda: ResNetCIFAR(56), lambda: ResNetCIFAR(20), images(size, 3, 32, 32)),
        "MLP 1200-1200 to 800-800": (
            lambda: MLP((1200, 1200), in_features=784, num_classes=10),
            lambda: MLP((800, 800), in_features=784, num_classes=10),
            images(size, 784),
        ),
    }
    for name, (teacher, student, batch) in pairs.items():
        steps = {
            "cache" if kept else "live": own(student(), teacher(), {}, batch, compiled=False, cache=kept)
            for kept in (False, True)
        }
        yield name, measure(steps, reference="cache", bench=_bench(batch), warmup=2, rounds=rounds)


def _bench(batch: Batch) -> Bench:
    return Bench(f"torch {torch.__version__}", provenance()["device"], torch.get_num_threads(), len(batch[0]))


def main() -> None:
    """Print the tables and, with --out, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    record: dict[str, Any] = {"torchdistill": version("torchdistill"), "losses": {}, "cache": {}}
    for row, found in losses(images(options.batch, 3, 32, 32), options.rounds, compiled=options.compile):
        record["losses"][row] = {name: asdict(each) for name, each in found.items()}
        shares = ", ".join(f"{name} {each.ratio:.2f}" for name, each in found.items() if name != "theirs")
        print(f"{row:16s} theirs {found['theirs'].median_ms:5.0f} ms a step; of that {shares}", flush=True)
    for name, found in cache(options.rounds, options.batch):
        record["cache"][name] = {key: asdict(each) for key, each in found.items()}
        print(f"{name}: {found['live'].ratio:.2f} times faster with the cache", flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**record, "provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
