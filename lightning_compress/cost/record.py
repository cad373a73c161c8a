"""What a compressed model costs, in total and per layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn

from lightning_compress.core import recurrent
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.grid import arithmetic_bits
from lightning_compress.core.stored import Stored
from lightning_compress.core.surgery import INPUT_CHILD, OUTPUT_CHILD, dotted
from lightning_compress.core.weight import Place
from lightning_compress.cost.bops import FLOAT_BITS
from lightning_compress.cost.macs import macs, macs_share, multiplied_bits


@final
@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer: its main tensor's shape, bits and share of exact zeros, its MACs, all its bytes.

    `weight_bits` are those that one weight takes on disk before entropy coding, `arithmetic_bits` those of the number
    that is multiplied: a codebook of 16 float levels has 4 and 32. The main tensor of a recurrent layer is its largest.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int
    arithmetic_bits: int
    activation_bits: int
    sparsity: float
    macs: int
    bytes: int


def layer_table(
    model: nn.Module,
    stored: Mapping[str, Stored],
    example: Any,
    bytes_per_tensor: Mapping[str, int] | None = None,
) -> list[LayerCost]:
    """Tabulate the layers of a finalized model: every module that holds tensors, in the model's order.

    The bytes of a quantizer belong to the layer it is a child of, or to the next layer where it is on the output of a
    module that holds nothing else; a tied tensor's belong to the first layer that has it.
    So the columns `macs` and `bytes` add up to the model's.

    Args:
        model: plain modules, input quantizers as children of their layers.
        stored: one entry per tensor of the model, tied ones once.
        example: a batch of inputs, each (B, ...).
        bytes_per_tensor: length in the packed file by name in `stored`; without it, bytes are 0.

    Raises:
        ValueError: when `bytes_per_tensor` names a tensor that is not in `stored`.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> stored = {name: Stored(value) for name, value in net.state_dict().items()}
    >>> layer_table(net, stored, torch.zeros(1, 4), {"0.weight": 32, "0.bias": 8})[0].bytes
    40
    """
    sizes = bytes_per_tensor or {}
    unknown = sorted(sizes.keys() - stored.keys())
    if unknown:
        raise ValueError(f"bytes given for tensors that are not stored: {', '.join(unknown)}")
    counts = macs(model, example)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    rows: list[LayerCost] = []
    waiting = 0
    for layer, module in model.named_modules():
        if layer.rpartition(".")[2] in (INPUT_CHILD, OUTPUT_CHILD):
            continue
        owned, own = _owned(layer, stored), [name for name in stored if name.rpartition(".")[0] == layer]
        tensors = [stored[names[id(p)]] for p in module.parameters(recurse=False)] + [stored[n] for n in own]
        waiting += sum(sizes.get(name, 0) for name in owned)
        if not tensors:
            continue
        weight = names.get(id(getattr(module, "weight", None)))
        main = stored[weight] if weight else max(tensors, key=lambda tensor: tensor.value.numel())
        rows.append(
            LayerCost(
                name=layer,
                kind=type(module).__name__,
                shape=tuple(main.value.shape),
                weight_bits=main.bits,
                arithmetic_bits=arithmetic_bits(main),
                activation_bits=_activation_bits(module),
                sparsity=main.sparsity,
                macs=counts.get(layer, 0),
                bytes=waiting,
            )
        )
        waiting = 0
    return [*rows[:-1], *(replace(row, bytes=row.bytes + waiting) for row in rows[-1:])]


def operands(
    model: nn.Module, stored: Mapping[str, Stored], rows: Iterable[LayerCost]
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Multiply-accumulates, bits of weights and bits of what these multiply, as `bops` takes them.

    Of a recurrent layer they go by its weights, which may have bits of their own; what it hands itself is floats,
    however its inputs are rounded.

    >>> import torch
    >>> net = nn.Sequential(nn.GRU(2, 4))
    >>> stored = {name: Stored(value) for name, value in net.state_dict().items()}
    >>> operands(net, stored, layer_table(net, stored, torch.zeros(1, 3, 2)))[0]
    {'0.weight_ih_l0': 72, '0.weight_hh_l0': 144}
    """
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    found: dict[str, tuple[int, int, int]] = {}
    for row in rows:
        layer = model.get_submodule(row.name)
        if not isinstance(layer, recurrent.KINDS):
            found[row.name] = (row.macs, row.arithmetic_bits, row.activation_bits)
            continue
        for name in recurrent.names(layer):
            place = Place(row.name, layer, name)
            bits = arithmetic_bits(stored[names[id(getattr(layer, name))]])
            count = round(row.macs * macs_share(place))
            found[dotted(row.name, name)] = (count, bits, multiplied_bits(place, row.activation_bits))
    counts, weights, inputs = ({name: each[part] for name, each in found.items()} for part in range(3))
    return counts, weights, inputs


def _owned(layer: str, stored: Mapping[str, Stored]) -> list[str]:
    """Names of the tensors stored for a layer, those of its quantizers included."""
    homes = (layer, dotted(layer, INPUT_CHILD), dotted(layer, OUTPUT_CHILD))
    return [name for name in stored if name.rpartition(".")[0] in homes]


def _activation_bits(module: nn.Module) -> int:
    quantizer = getattr(module, INPUT_CHILD, None)
    return quantizer.bits if isinstance(quantizer, FixedQuantizer) else FLOAT_BITS
