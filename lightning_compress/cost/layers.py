"""What single layers cost in one form or another, before a model is built that way."""

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, final

import torch
from torch import nn

from lightning_compress.core import forms, recurrent, surgery
from lightning_compress.core.inputs import rows
from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params


def input_shapes(model: nn.Module, example: Any, names: Iterable[str]) -> dict[str, list[torch.Size]]:
    """Shapes of what each of the layers `names` takes for one sample: one for each call.

    >>> input_shapes(nn.Sequential(nn.Linear(4, 2)), torch.zeros(2, 4), ["0"])
    {'0': [torch.Size([1, 4])]}
    """
    shapes: dict[str, list[torch.Size]] = {name: [] for name in names}

    def note(name: str, _layer: nn.Module, args: tuple[Any, ...]) -> None:
        shapes[name].append(recurrent.numbers(args[0]).shape)

    before = {name: partial(note, name) for name in shapes}
    surgery.watched(model, rows(example, slice(1)), nullcontext(), before=before, after={})
    return shapes


def layer_cost(layer: nn.Module, shapes: Iterable[torch.Size]) -> tuple[int, int]:
    """Parameters, and multiply-accumulates on inputs of these shapes; counted without computing anything.

    >>> layer_cost(nn.Conv2d(3, 8, 3), [torch.Size([1, 3, 10, 10])])
    (224, 13824)
    """
    empty = copy.deepcopy(layer).to("meta")
    counts = (number * sum(macs(empty, torch.empty(1, *rest, device="meta")).values()) for number, *rest in shapes)
    return num_params(layer), sum(counts)


@final
class Prices:
    """Parameters and multiply-accumulates of the layers `names` of a model in one form or another.

    >>> prices = Prices(nn.Sequential(nn.Linear(8, 8)), torch.zeros(1, 8), ["0"])
    >>> prices.whole["0"], prices.of("0", "svd", (2,)), prices.saves("0", "svd", (4,))
    ((72, 64), (40, 32), False)
    """

    def __init__(self, model: nn.Module, example: Any, names: Iterable[str]) -> None:
        self._layers = {name: model.get_submodule(name) for name in names}
        self._shapes = input_shapes(model, example, self._layers)
        self.whole = {name: layer_cost(layer, self._shapes[name]) for name, layer in self._layers.items()}
        self.of = cache(self._of)

    def _of(self, name: str, form: str, ranks: tuple[int, ...]) -> tuple[int, int]:
        return layer_cost(forms.shaped(self._layers[name], form, ranks), self._shapes[name])

    def saves(self, name: str, form: str, ranks: tuple[int, ...]) -> bool:
        """Whether there are fewer weights and no more multiply-accumulates in this form."""
        (params, macs), (before, macs_before) = self.of(name, form, ranks), self.whole[name]
        return params < before and macs <= macs_before
