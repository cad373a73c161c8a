"""Layer by layer against the float network: what comes to a layer, and taking the mean error out of its output."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import surgery


def in_order(model: nn.Module, names: Iterable[str], batch: Any) -> list[str]:
    """Those of the layers `names` that run, in the order in which they first do.

    >>> in_order(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["1", "0"], torch.ones(1, 2))
    ['0', '1']
    """
    ran: dict[str, None] = {}

    def note(name: str, *_: object) -> None:
        ran[name] = None

    surgery.watched(model, batch, nullcontext(), before={name: partial(note, name) for name in names}, after={})
    return list(ran)


def inputs_of(model: nn.Module, name: str, batches: Sequence[Any]) -> list[Tensor]:
    """What the layer `name` multiplies at each of its calls, quantized where it has a quantizer.

    >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))
    >>> inputs_of(net, "1", [torch.tensor([[-1.0, 2.0]])])
    [tensor([[0., 2.]])]
    """
    found: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].detach())

    for batch in batches:
        surgery.watched(model, batch, nullcontext(), before={name: note}, after={})
    return found


def by_channel(layer: nn.Module, output: Tensor) -> Tensor:
    """What a layer put out as [numbers, channels].

    >>> by_channel(nn.Conv2d(1, 3, 1), torch.ones(2, 3, 4, 5)).shape
    torch.Size([40, 3])
    """
    return output.flatten(0, -2) if isinstance(layer, nn.Linear) else output.transpose(0, 1).flatten(1).T


def mean_outputs(layer: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """Mean of a plain layer's output for each of its channels, over everything else.

    >>> layer = nn.Linear(1, 2)
    >>> torch.equal(mean_outputs(layer, [torch.zeros(3, 1)]), layer.bias)
    True
    """
    total, number = torch.zeros(()), 0
    for x in inputs:
        rows = by_channel(layer, layer(x)).double()
        total, number = total.to(rows.device) + rows.sum(0), number + len(rows)
    return (total / number).to(inputs[0].dtype)


@torch.no_grad()
def correct(
    model: nn.Module, reference: nn.Module, names: Iterable[str], norms: Mapping[str, str], inputs: Sequence[Any]
) -> None:
    """Take each layer's mean error on `inputs` out of its bias (Nagel et al. 2019, arXiv 1906.04721, section 4.2).

    `reference` is the network before quantization, with the same names. Layers go in the order in which they run, each
    behind those that were corrected, so that in the end all have the right mean. `norms` has the batch norm right after
    a layer, whose running mean serves where there is no bias; a layer with neither keeps its error.
    """
    for name in in_order(model, names, inputs[0]):
        layer: Any = model.get_submodule(name)
        if layer.bias is None and name not in norms:
            continue
        with surgery.evaluating(layer):
            twin = surgery.plain(layer)
        plain = reference.get_submodule(name)
        error = mean_outputs(twin, inputs_of(model, name, inputs))
        error -= mean_outputs(plain, inputs_of(reference, name, inputs))
        if layer.bias is not None:
            layer.bias -= error
        else:
            norm: Any = model.get_submodule(norms[name])
            norm.running_mean += error
