"""`Slim`: convolutions that become something lighter."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from math import ceil, prod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_compress.core import edits, reform, select, surgery
from lightning_compress.core.method import Compact, Edit, Method, Stage
from lightning_compress.cost.layers import Prices
from lightning_compress.slim.fit import LeastSquares

_KINDS = {"separable": "separable", "grouped": "grouped", "bottleneck": "tucker"}


@final
class Slim(Method):
    """Puts lightweight substitutes in the place of convolutions with a kernel, fitted to what they stand for.

    `kind` is "separable" (the kernel on each channel alone, then 1x1; arXiv 1704.04861), "grouped" (a shuffle of
    the channels, then the kernel in `groups`; 1707.01083) or "bottleneck" (1x1 to `ratio` of the channels, the kernel
    there, 1x1 back; by Tucker-2), or what the first pattern of a mapping such as {"layer3": "grouped", "": "separable"}
    says that is found in the layer's name.

    Weights begin as the nearest ones to the convolution's (least squares, 1604.06119 for the separable ones). Then the
    last layer of each substitute, one substitute after another, is fitted by least squares to the outputs of its
    convolution on `batches` of training data; 0 leaves that out. A convolution whose substitute would not have fewer
    weights and as few multiply-accumulates stays, and a log line names it.

    Raises:
        ValueError: an unknown kind, a setting out of range, or nothing saved.

    >>> model = Slim().attach(nn.Sequential(nn.Conv2d(8, 16, 3)), torch.zeros(1, 8, 9, 9))
    >>> [tuple(tensor.shape) for tensor in model.state_dict().values()]
    [(8, 1, 3, 3), (16, 8, 1, 1), (16,)]
    """

    stage: ClassVar[Stage] = Stage.STRUCTURE

    def __init__(
        self,
        kind: str | Mapping[str, str] = "separable",
        *,
        groups: int = 2,
        ratio: float = 0.5,
        batches: int = 4,
        select: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.kind = dict(kind) if isinstance(kind, Mapping) else {"": kind}
        for name in self.kind.values():
            if name not in _KINDS:
                raise ValueError(f"Slim: kind must be one of {', '.join(_KINDS)}; got {name!r}")
        if groups < 2 or not 0.0 < ratio <= 1.0 or batches < 0:
            raise ValueError(
                "Slim: groups count from 2 up, ratio lies in (0, 1], batches count from 0 up; "
                f"got {groups=}, {ratio=}, {batches=}"
            )
        self.groups, self.ratio, self.batches = groups, ratio, batches
        self.select, self.exclude = select, tuple(exclude)
        self._edits: list[Edit] = []
        self._replaced: dict[str, nn.Module] = {}

    def get_extra_state(self) -> dict[str, Any]:
        """The substitutes, which a resumed run must have chosen again."""
        return {"edits": self._edits}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See that they are those of the checkpoint."""
        reform.check_same(self._edits, state["edits"], owner="Slim")

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Replace the selected convolutions."""
        layers: dict[str, Any] = select.layers(
            model, owner="Slim", select=self.select, exclude=self.exclude, kinds=(nn.Conv2d,)
        )
        kinds = select.by_pattern(self.kind, layers, owner="Slim")
        whole = reform.refusals(model, {name: _KINDS[kind] for name, kind in kinds.items()})
        for name, layer in layers.items():
            if prod(layer.kernel_size) == 1:
                whole[name] = "it is 1x1"
            elif kinds[name] == "grouped" and (layer.in_channels % self.groups or layer.out_channels % self.groups):
                whole[name] = f"{self.groups} groups do not divide its channels"
        wanted = {name: layer for name, layer in layers.items() if name not in whole}
        ranks = {name: self._ranks(kinds[name], layer) for name, layer in wanted.items()}
        prices = Prices(model, example, wanted)
        for name in wanted:
            if not prices.saves(name, _KINDS[kinds[name]], ranks[name]):
                whole[name] = f"{kinds[name]} saves nothing"
        self._replaced = {name: layer for name, layer in wanted.items() if name not in whole}
        self._edits = [edits.factor(name, _KINDS[kinds[name]], ranks[name]) for name in self._replaced]
        return reform.reformed(model, self._edits, whole, owner="Slim")

    def _ranks(self, kind: str, layer: nn.Conv2d) -> tuple[int, ...]:
        if kind == "bottleneck":
            return ceil(self.ratio * layer.in_channels), ceil(self.ratio * layer.out_channels)
        return (self.groups,) if kind == "grouped" else ()

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Fit each substitute to its convolution on what comes to it once those before it are fitted."""
        if not self.batches:
            return
        seen = [batch[0] for batch in islice(batches, self.batches)]
        twin = surgery.plain(model, below=True)  # quantizers have seen nothing yet
        for edit in self._edits:
            *_, (last, _) = twin.get_submodule(edit["layer"]).named_children()
            name = surgery.dotted(edit["layer"], last)
            _fit(twin, edit["layer"], name, self._replaced.pop(edit["layer"]), seen)
            for attribute, value in twin.get_submodule(name).named_parameters():
                surgery.latent(model.get_submodule(name), attribute).detach().copy_(value)

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """The substitutes are there already; say how they came about."""
        return compact.with_edits(self._edits)


@torch.no_grad()
def _fit(model: nn.Module, substitute: str, last: str, replaced: nn.Module, seen: Sequence[Tensor]) -> None:
    """Fit the last convolution of a substitute to the outputs of the convolution that it replaced."""
    conv = model.get_submodule(last)
    assert isinstance(conv, nn.Conv2d)
    replaced = replaced.to(conv.weight.device)
    squares, wanted = LeastSquares(conv), []

    def ask(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        wanted.append(replaced(args[0]))

    def take(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        squares.add(args[0], wanted.pop())

    for inputs in seen:
        surgery.watched(model, inputs, nullcontext(), before={substitute: ask, last: take}, after={})
    squares.solve()
