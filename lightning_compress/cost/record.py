"""What a compressed model costs, in total and per layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.stored import Stored
from lightning_compress.core.surgery import INPUT_CHILD
from lightning_compress.cost.bops import FLOAT_BITS
from lightning_compress.cost.macs import macs


@final
@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer: its main tensor's shape, bits and share of exact zeros, its MACs, all its bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weight_bits: int
    activation_bits: int
    sparsity: float
    macs: int
    bytes: int


def layer_table(
    model: nn.Module,
    stored: Mapping[str, Stored],
    example: Tensor,
    bytes_per_tensor: Mapping[str, int] | None = None,
) -> list[LayerCost]:
    """Tabulate the layers of a finalized model: every module that holds tensors, in the model's order.

    The bytes of an input quantizer belong to its layer; a tied tensor's bytes to the first layer that has it.
    So the columns `macs` and `bytes` add up to the model's.

    Args:
        model: plain modules, input quantizers as children of their layers.
        stored: one entry per tensor of the model, tied ones once.
        example: a batch, (B, ...).
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
    rows = []
    for layer, module in model.named_modules():
        owned = _owned(layer, stored)
        tensors = [stored[names[id(p)]] for p in module.parameters(recurse=False)] + [stored[n] for n in owned]
        if not tensors or layer.rpartition(".")[2] == INPUT_CHILD:
            continue
        weight = names.get(id(getattr(module, "weight", None)))
        main = stored[weight] if weight else max(tensors, key=lambda tensor: tensor.value.numel())
        rows.append(
            LayerCost(
                name=layer,
                kind=type(module).__name__,
                shape=tuple(main.value.shape),
                weight_bits=main.bits,
                activation_bits=_activation_bits(module),
                sparsity=main.sparsity,
                macs=counts.get(layer, 0),
                bytes=sum(sizes.get(name, 0) for name in owned),
            )
        )
    return rows


def _owned(layer: str, stored: Mapping[str, Stored]) -> list[str]:
    """Names of the tensors stored for a layer, those of its input quantizer included."""
    homes = (layer, f"{layer}.{INPUT_CHILD}" if layer else INPUT_CHILD)
    return [name for name in stored if name.rpartition(".")[0] in homes]


def _activation_bits(module: nn.Module) -> int:
    quantizer = getattr(module, INPUT_CHILD, None)
    return quantizer.bits if isinstance(quantizer, FixedQuantizer) else FLOAT_BITS
