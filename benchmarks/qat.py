"""A QAT step of ResNet-20 on CIFAR-10 shapes: ours against torchao's (PT2E, X86InductorQuantizer) and Brevitas'.

    pip install torchao==0.18.0
    pip install --no-deps brevitas==0.13.0 && pip install dependencies unfoldNd   # it asks for older packages than ours
    python benchmarks/qat.py --out reports/records/qat/resnet20.json

Everybody has the same layers quantized: the weights of all convolutions and of the classifier symmetrically with a
scale for each output channel, and the inputs of these layers with one scale; with the same batch, optimizer (SGD with
momentum), thread and memory format (channels last where run/device.py picks it). torchao and we observe the ranges of
inputs at each step; Brevitas learns their scales, and its 300 steps of percentiles beforehand are left out.
torchao fuses batch norms into the weights while it trains, as its flow does by default.

The first table is at the same precision without `torch.compile`. In the second each has the fastest setting it
supports: compiled or not, and in bf16 or not where the machine has units for that. All are timed in turn, round by
round, so that the ratios hold while the speed of the machine drifts: a ratio is the median over the rounds. Before that
each eager step is watched once: what convolutions and the classifier are given may have no more levels than bits allow.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from step_time import bare, ours, sgd
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchao.quantization.pt2e import FakeQuantizeBase, move_exported_model_to_train
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from lightning_compress.core import surgery
from lightning_compress.core.task import classification
from lightning_compress.export.latency import Bench, Latency, measure
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.module import CompressionModule
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer
from lightning_compress.quantize.method import Quantize
from lightning_compress.run import device
from lightning_compress.tracking.provenance import provenance

Step = Callable[[], None]
Batches = Iterator[tuple[Tensor, Tensor]]
#: What does the work in a layer with a weight, and which of its arguments are input and weight.
LAYERS = {torch.ops.aten.convolution.default: (0, 1), torch.ops.aten.addmm.default: (1, 2)}
NUMBER = 20
if not hasattr(Tensor, "rename"):  # Brevitas 0.13 calls it to drop names, which torch 2.13 no longer has
    Tensor.rename = lambda self, _names: self


class Watch(TorchDispatchMode):
    """Counts the levels of what each convolution and each linear layer is given."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, then call."""
        if func in LAYERS:
            x, weight = (args[place].detach() for place in LAYERS[func])
            row = weight[0] if weight.dim() == 4 else weight[:, 0]
            self.levels.append((len(x[:16].unique()), len(row.unique())))
        return func(*args, **(kwargs or {}))


def check(name: str, step: Step, model: nn.Module, bits: int) -> None:
    """See that a step quantizes everything to so many bits and trains every weight."""
    with Watch() as watch:
        step()
    if len(watch.levels) != NUMBER or max(max(found) for found in watch.levels) > 2**bits:
        raise RuntimeError(f"{name}: expected {NUMBER} layers with at most {2**bits} levels, got {watch.levels}")
    weights = {key: value.grad for key, value in model.named_parameters() if value.dim() > 1}
    idle = [key for key, grad in weights.items() if grad is None or not grad.any()]
    if idle:
        raise RuntimeError(f"{name}: no gradient came to {', '.join(idle)}")


def own(bits: int, batches: Batches, *, compiled: bool) -> tuple[Step, nn.Module, int]:
    """Ours with its defaults; and the number of quantizers."""
    images, _ = next(batches)
    last = images.is_contiguous(memory_format=torch.channels_last)
    module = CompressionModule(
        ResNetCIFAR(20), classification(10), [Quantize(bits, bits)], example=images[:1], optimizer=sgd,
        compile_model=compiled, channels_last=last,
    )  # fmt: skip
    number = sum(isinstance(each, InputQuantizer | WeightQuantizer) for each in module.modules())
    return ours(module, batches), module.model, number


def dense(bits: int, batches: Batches, *, compiled: bool) -> tuple[Step, nn.Module, int]:
    """The plain network."""
    model = _network(batches)
    return bare(model, batches, compiled=compiled), model, 0


def torchao(bits: int, batches: Batches, *, compiled: bool) -> tuple[Step, nn.Module, int]:
    """The network exported and prepared by torchao; its default config, with the ends of the codes moved."""
    config = x86.get_default_x86_inductor_quantization_config(is_qat=True)
    inputs = replace(config.input_activation, quant_max=2**bits - 1)
    weight = replace(config.weight, quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1)
    config = replace(config, input_activation=inputs, output_activation=inputs, weight=weight)
    exported = torch.export.export(_network(batches), next(batches)[:1]).module()
    model = prepare_qat_pt2e(exported, x86.X86InductorQuantizer().set_global(config))
    move_exported_model_to_train(model)
    number = sum(isinstance(each, FakeQuantizeBase) for each in model.modules())
    return bare(model, batches, compiled=compiled), model, number


def brevitas(bits: int, batches: Batches, *, compiled: bool) -> tuple[Step, nn.Module, int]:
    """The network with the layers of Brevitas, past the steps in which it collects statistics."""
    model = _network(batches)
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    for position, (name, layer) in enumerate(layers.items()):
        surgery.replace(model, name, _of_brevitas(layer, bits, signed=position == 0))
    model.to(memory_format=_layout(batches))
    step = bare(model, batches, compiled=compiled)
    return step, model, 2 * len(layers)


def _of_brevitas(layer: nn.Module, bits: int, *, signed: bool) -> nn.Module:
    options = {
        "bias": layer.bias is not None,
        "weight_quant": Int8WeightPerChannelFloat,
        "weight_bit_width": bits,
        "input_quant": Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat,
        "input_bit_width": bits,
        "input_collect_stats_steps": 1,
    }
    if isinstance(layer, nn.Linear):
        return qnn.QuantLinear(layer.in_features, layer.out_features, **options)
    assert isinstance(layer, nn.Conv2d)
    return qnn.QuantConv2d(
        layer.in_channels, layer.out_channels, 3, stride=layer.stride, padding=layer.padding, **options
    )


def _layout(batches: Batches) -> torch.memory_format:
    last = next(batches)[0].is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _network(batches: Batches) -> nn.Module:
    return ResNetCIFAR(20).to(memory_format=_layout(batches))


ROWS = {"dense": dense, "ours": own, "torchao": torchao, "Brevitas": brevitas}
PEERS = ("torchao", "Brevitas")


def candidates(bits: int, batches: Batches, settings: list[str]) -> tuple[dict[str, Step], dict[str, Any]]:
    """Every row in every setting that works, by "row, setting"; numbers of quantizers, and why a setting fails."""
    steps: dict[str, Step] = {}
    notes: dict[str, Any] = {"quantizers": {}, "fails": {}}
    for (row, make), setting in ((pair, setting) for pair in ROWS.items() for setting in settings):
        name = f"{row}, {setting}"
        try:
            step, model, notes["quantizers"][row] = make(bits, batches, compiled="compiled" in setting)
            steps[name] = _under_autocast(step) if "bf16" in setting else step
            steps[name]()
            if setting == "eager" and row != "dense":
                steps[name]()  # Brevitas has its scales now
                check(name, step, model, bits)
        except Exception as error:
            if setting == "eager":
                raise
            steps.pop(name, None)
            notes["fails"][name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        print(f"W{bits}A{bits} {name}: {notes['fails'].get(name, 'ready')}", flush=True)
    return steps, notes


def _under_autocast(step: Step) -> Step:
    def cast() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step()

    return cast


def table(found: Mapping[str, Latency], allowed: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    """For each row its fastest setting of those `allowed`, in ms and as a share of ours, and ours of the best peer."""
    best: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        names = [name for name in found if name.startswith(row) and allowed(name)]
        name = min(names, key=lambda name: found[name].ratio)
        best[row] = {"setting": name.partition(", ")[2], "ms": found[name].median_ms, "ratio": found[name].ratio}
    return best


def show(title: str, best: dict[str, dict[str, Any]]) -> None:
    """Print a table."""
    first = min(PEERS, key=lambda row: best[row]["ratio"])
    print(f"\n{title}: ours {best['ours']['ratio'] / best[first]['ratio']:.2f} x {first}, the better peer")
    for row, cells in best.items():
        share = cells["ratio"] / best["dense"]["ratio"]
        print(f"  {row:9s} {cells['ms']:8.0f} ms/step  {share:5.2f} x dense   {cells['setting']}")


def main() -> None:
    """Print the tables and, with --out, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--no-compile", action="store_true", help="the first table only: no minutes of compiling")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = ["eager"] if options.no_compile else ["eager", "compiled"]
    if device.has_fast_bf16():
        settings += [f"{setting}, bf16" for setting in settings]
    images, targets = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    if device.channels_last(None, ResNetCIFAR(20)):
        images = images.to(memory_format=torch.channels_last)
    bench = Bench(f"torch {torch.__version__}", provenance()["device"], torch.get_num_threads(), options.batch)
    record: dict[str, Any] = {"peers": {name: version(name) for name in ("torchao", "brevitas")}}
    for bits in options.bits:
        steps, notes = candidates(bits, repeat((images, targets)), settings)
        found = measure(steps, reference="ours, eager", bench=bench, warmup=1, rounds=options.rounds)
        same = table(found, lambda name: name.endswith(", eager"))
        best = table(found, lambda name: True)
        show(f"W{bits}A{bits}, same precision, not compiled", same)
        show(f"W{bits}A{bits}, best setting of each", best)
        print(f"  quantizers: {notes['quantizers']}  fails: {notes['fails']}")
        record[f"W{bits}A{bits}"] = {
            "same": same, "best": best, **notes, "all": {name: asdict(each) for name, each in found.items()}
        }  # fmt: skip
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps({**record, "provenance": provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
