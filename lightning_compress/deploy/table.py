"""What a latency table of a network's layers is measured from: tiny models of them, and whole networks to compare."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from importlib import resources
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.files import write_json, write_text
from lightning_compress.core.method import Method
from lightning_compress.deploy import measure_table
from lightning_compress.export import onnx, pieces
from lightning_compress.export.layers import Layer
from lightning_compress.prune import allocate
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run import build
from lightning_compress.run.targets import Config

_STEPS, _FITTED = 16, 0.4
_SIDES: Any = (("float", "float"), ("uint8", "uint8"), ("uint8", "float"))
_KERNELS = {"float": ["integer"], "uint8": ["integer", "float"]}


def measure(config: Config, to: Path, timing: Mapping[str, int], say: Callable[[str], None]) -> None:
    """Measure the latency table of a network's layers on this device and write it to the file `to`.

    `timing` has the `batch`, the `threads` and the `rounds`.

    Raises:
        ValueError: what `write_pieces` raises.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        archive = Path(folder) / measure_table.PIECES
        write_pieces(config, archive, say)
        write_json(to, measure_table.measured(archive, **timing, say=say))


def write_folder(config: Config, to: Path, say: Callable[[str], None]) -> None:
    """Write the folder that measures such a table on another device.

    Raises:
        ValueError: `to` holds something already, or what `write_pieces` raises.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} is there already: name another folder with --export, or empty it")
    to.mkdir(parents=True, exist_ok=True)
    script = resources.files("lightning_compress.deploy") / "measure_table.py"
    write_text(to / "measure_table.py", script.read_text("utf-8"))
    write_pieces(config, to / measure_table.PIECES, say)


def write_pieces(config: Config, file: Path, say: Callable[[str], None], *, patterns: int = 10) -> None:
    """Write the archive that `measure_table.py` times: the layers of a network, and whole networks made from it.

    Those are the network itself and `patterns` - 1 with random channels cut, in floats and at 8 bits, some also with
    only the inputs of layers rounded. Those of the first patterns, 4 in 10, are for fitting.

    Raises:
        ValueError: what is wrong with the configuration, or the network has no channels that may go.
    """
    data = build.data(config)
    make = build.builder(build.architecture(config["model"], data, config["allow"]), config)
    networks: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for pattern in range(patterns):
            for form, methods in _forms(pattern):
                model = Path(folder) / f"{pattern}-{form}.onnx"
                _export(make(), methods, data.example.shape[1:], pattern, model)
                archive.write(model, model.name)
                network = pieces.read(model)
                kernels = _KERNELS["uint8" if methods else "float"]
                own = {"model": model.name, "kernels": kernels, "fitted": pattern < _FITTED * patterns}
                networks.append({"name": model.stem, **own, **asdict(network)})
                say(f"network {model.stem} written, of {patterns} patterns")
                if not networks[1:]:
                    layers = families(network.layers)
        manifest = {
            "reference": "reference.onnx",
            "layers": [_family(number, layer, archive) for number, layer in enumerate(layers)],
            "networks": networks,
        }
        archive.writestr("reference.onnx", pieces.tiny(max(layers, key=_work)))
        archive.writestr("manifest.json", json.dumps(manifest))


def counts(most: int) -> list[int]:
    """The channel counts to measure of a side with `most`: multiples of 4, some that are none, and itself.

    >>> counts(16), counts(10), counts(64)
    ([2, 4, 8, 10, 12, 14, 16], [2, 4, 6, 8, 10], [2, 4, 16, 30, 32, 48, 62, 64])
    """
    step = 4 * math.ceil(most / _STEPS)
    whole = sorted({count for count in (4, *range(step, most + 1, step)) if count <= most})
    between = {whole[place] - 2 for place in (0, len(whole) // 2, -1)} if whole else set()
    return sorted({*whole, *between, most})


def families(layers: Iterable[Layer]) -> list[Layer]:
    """One layer of each kind among `layers`, in floats and in integers, with the most channels of its kind.

    >>> [layer.ins for layer in families([Layer("linear", 4, 10), Layer("linear", 8, 2)])]
    [8, 8, 8]
    """
    found: dict[tuple[Any, ...], Layer] = {}
    for layer in layers:
        for before, after in _SIDES:
            one = replace(layer, before=before, after=after)
            other = found.setdefault(one.family, one)
            ins, outs = max(one.ins, other.ins), max(one.outs, other.outs)
            fixed = one.last and other.last and one.outs == other.outs
            groups = ins if one.depthwise else one.groups
            found[one.family] = replace(other, ins=ins, outs=outs, groups=groups, last=fixed)
    return list(found.values())


def _work(layer: Layer) -> int:
    floats = layer.before == "float"
    return floats * prod((*layer.size, *layer.kernel, layer.ins, layer.outs)) // layer.groups


def _family(number: int, layer: Layer, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Write the tiny models of a kind of layer over a grid of channel counts."""
    ins, outs = layer.place
    rigid = layer.groups > 1 and not layer.depthwise
    of_ins = [ins] if layer.first or rigid else counts(ins)
    of_outs = [outs] if layer.last or rigid or layer.depthwise else counts(outs)
    models = [[f"{number}-{a}-{b}.onnx" for b in of_outs] for a in of_ins]
    without = [f"{number}-{a}.onnx" if pieces.wraps(layer) else None for a in of_ins]
    for a, row, thin in zip(of_ins, models, without, strict=True):
        for b, name in zip(of_outs, row, strict=True):
            archive.writestr(name, pieces.tiny(layer.at(a, b)))
        if thin:
            archive.writestr(thin, pieces.tiny(layer.at(a, of_outs[0]), without=True))
    grid = {"ins": of_ins, "outs": of_outs, "models": models, "without": without}
    return {"layer": asdict(layer), **grid, "kernels": _KERNELS[layer.before]}


def _forms(pattern: int) -> Iterator[tuple[str, list[Method]]]:
    yield "float", []
    yield "8-bit", [Quantize(8, 8, outputs=True)]
    if pattern % 3 == 0:
        yield "8-bit-inputs", [Quantize(8, 8)]


def _export(model: nn.Module, methods: list[Method], shape: Iterable[int], pattern: int, file: Path) -> None:
    """Write a network with random channels cut, none of the first pattern."""
    draw = torch.Generator().manual_seed(pattern)
    inputs = torch.randn(8, *shape, generator=draw)
    if pattern:
        # One pattern in three keeps to multiples of 8, one to those of 4, as channels are cut where it should pay.
        rounded = (8, 1, 4)[pattern % 3]
        methods = [Prune(0.5, pattern="channel", allocation=_random(draw), round_to=rounded), *methods]
    compressor = Compressor(methods)
    model = compressor.attach(model, inputs[:1])
    compressor.prepare(model, [(inputs, None)], trains=False)
    onnx.export(compressor.finalize(model, inputs[:1]), inputs[:2], file)


def _random(draw: torch.Generator) -> Callable[[allocate.Scores, float, int], allocate.Scores]:
    """An allocation that keeps a random share of every group, wherever the sparsity is."""
    least = float(torch.empty(1).uniform_(0.1, 0.7, generator=draw))
    shares: dict[str, float] = {}

    def allocation(scores: dict[str, Tensor], sparsity: float, multiple: int) -> dict[str, Tensor]:
        for name in scores:
            shares.setdefault(name, float(torch.empty(1).uniform_(least, 0.95, generator=draw)))
        return {
            name: allocate.uniform({name: score}, 1 - shares[name], multiple)[name] for name, score in scores.items()
        }

    return allocation
