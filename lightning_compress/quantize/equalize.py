"""Cross-layer equalisation (Nagel et al. 2019, arXiv 1906.04721, section 4.1): the same function, evener weights."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_compress.core import surgery
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import along

_aten = torch.ops.aten
#: f(s x) = s f(x) for each channel's own s > 0: ReLU, pooling, and what leaves batch and channels where they are.
_HOMOGENEOUS = {
    *(_aten.relu, _aten.relu_, _aten.max_pool2d_with_indices, _aten.avg_pool2d, _aten._adaptive_avg_pool2d),
    *(_aten.mean, _aten.view, _aten._unsafe_view),
}
_WATCHED: tuple[type[nn.Module], ...] = (*WEIGHTED, _BatchNorm)
_PASSES = 50
_EVEN = 1e-3


@final
@dataclass(frozen=True)
class Link:
    """A layer, the batch norm right after it (or none), and the layer that reads what ReLU and pooling make of it."""

    first: str
    norm: str | None
    second: str


def links(model: nn.Module, example: Any) -> list[Link]:
    """Layers joined by ReLU, batch norm and pooling only, in the order in which running `example` shows them.

    Only where a factor can move from one to the other: each runs once, nobody else reads what is between them, no
    weight is shared, and the second is not grouped.

    >>> links(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(2, 2))
    [Link(first='0', norm=None, second='2')]
    """
    watch = _Watch()
    names = [name for name, module in model.named_modules() if isinstance(module, _WATCHED)]
    before = {name: partial(watch.read, name) for name in names}
    after = {name: partial(watch.written, name) for name in names}
    surgery.watched(model, example, watch, before=before, after=after)
    shared = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [link for link in watch.links() if _movable(model, link, shared)]


def _movable(model: nn.Module, link: Link, shared: Counter[int]) -> bool:
    first, second = model.get_submodule(link.first), model.get_submodule(link.second)
    fits = getattr(second, "groups", 1) == 1 and first.weight.shape[0] == second.weight.shape[1]  # type: ignore
    return fits and all(shared[id(_latent(layer))] == 1 for layer in (first, second))


@final
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which layer a tensor comes from, and how often each tensor is used; all are kept, so that no two share an id."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sources: dict[int, tuple[str, ...]] = {}
        self.chains: dict[int, list[int]] = {}
        self.uses: Counter[int] = Counter()
        self.calls: Counter[str] = Counter()
        self.ends: list[tuple[str, int]] = []
        self.kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        result = output[0] if isinstance(output, tuple) else output
        self.kept.append((args, output))
        moves = func.overloadpacket in _HOMOGENEOUS
        if moves and result is args[0]:
            return output  # rectified in place: still the one tensor
        self.uses.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if moves and id(args[0]) in self.sources and result.shape[:2] == args[0].shape[:2]:
            self._hand_on(args[0], result, self.sources[id(args[0])])
        return output

    def _hand_on(self, before: Tensor, after: Tensor, source: tuple[str, ...]) -> None:
        self.sources[id(after)] = source
        self.chains[id(after)] = [*self.chains[id(before)], id(after)]

    def read(self, name: str, module: nn.Module, args: Any) -> None:
        self.calls[name] += 1
        if isinstance(module, WEIGHTED) and id(args[0]) in self.sources:
            self.ends.append((name, id(args[0])))

    def written(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self.kept.append(output)
        if isinstance(module, _BatchNorm):
            source = self.sources.get(id(args[0]), ())
            right_after = len(source) == 1 and len(self.chains[id(args[0])]) == 1
            if right_after and module.track_running_stats and module.affine:
                self._hand_on(args[0], output, (*source, name))
        elif not isinstance(module, nn.Linear) or output.dim() == 2:  # channels are along dimension 1
            self.sources[id(output)], self.chains[id(output)] = (name,), [id(output)]

    def links(self) -> list[Link]:
        """Pairs whose tensors in between are used once each."""
        found = []
        for second, end in self.ends:
            first, *norm = self.sources[end]
            once = all(self.calls[name] == 1 for name in (first, *norm, second))
            if once and all(self.uses[key] == 1 for key in self.chains[end]):
                found.append(Link(first, norm[0] if norm else None, second))
        return found


def _latent(layer: nn.Module) -> Tensor:
    """The trained tensor under a weight: masks that are over it commute with factors on rows and columns."""
    holder: Any = layer
    latent: Tensor = holder.weight
    if parametrize.is_parametrized(layer, "weight"):
        latent = holder.parametrizations["weight"].original
    return latent


@torch.no_grad()
def equalize(model: nn.Module, example: Any) -> list[Link]:
    """Even out the ranges of each channel's weights in linked layers, in place; outputs stay up to rounding.

    Row i of the first is divided by, and column i of the second multiplied by s = sqrt(r1 / r2), with r1 and r2 their
    largest magnitudes, until nothing changes. A batch norm between them is first moved into the weights, and left with
    statistics and a factor that undo each other, so that it can go on in training.

    Raises:
        ValueError: no layers are linked.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = equalize(net, torch.ones(2, 2))
    >>> torch.allclose(net[0].weight.abs().amax(1), net[2].weight.abs().amax(0), rtol=1e-2)
    True
    """
    found = links(model, example)
    if not found:
        raise ValueError(
            "Quantize: equalize=True, but no two layers are joined by ReLU, batch norm and pooling only; "
            "write equalize=False"
        )
    for _ in range(_PASSES):
        if max([_even_out(model, link) for link in found]) < _EVEN:
            break
    return found


def _even_out(model: nn.Module, link: Link) -> float:
    """Balance one pair; the greatest change, as |log s|."""
    first: Any = model.get_submodule(link.first)
    second: Any = model.get_submodule(link.second)
    norm: Any = model.get_submodule(link.norm) if link.norm is not None else None
    factor = torch.ones(len(first.weight), device=first.weight.device)
    if norm is not None:
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    rows = first.weight.flatten(1).abs().amax(1) * factor.abs()
    columns = second.weight.transpose(0, 1).flatten(1).abs().amax(1)
    tiny = torch.finfo(rows.dtype).tiny
    alive = (rows > tiny) & (columns > tiny)  # a channel that is dead on either side stays as it is
    s = torch.where(alive, (rows / columns).sqrt(), 1.0)
    scale = torch.where(alive, factor / s, 1.0)
    _latent(first).mul_(along(scale, 0, first.weight.dim()))
    _latent(second).mul_(along(s, 1, second.weight.dim()))
    if first.bias is not None:
        first.bias.mul_(scale)
    if norm is not None:
        norm.running_mean.mul_(scale)
        norm.running_var.mul_(scale.square())
        norm.weight.copy_(torch.where(alive, torch.sqrt(norm.running_var + norm.eps), norm.weight))
        norm.bias.copy_(torch.where(alive, norm.bias / s, norm.bias))
    return float(s.log().abs().max())
