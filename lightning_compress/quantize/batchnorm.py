"""Batch norms that follow a layer directly, and folding them into it (Jacob et al., arXiv 1712.05877, section 3.2)."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_compress.core import edits, surgery
from lightning_compress.core.method import Compact
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import Stored, along, by_group


def pairs(model: nn.Module, example: Any) -> dict[str, str]:
    """Batch norms by name, each with the layer whose output is its input, found by running `example` once.

    Only where folding is sound: layer and norm run once each, and nobody else reads or changes the layer's output.

    >>> pairs(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.ones(2, 2))
    {'1': '0'}
    """
    watch = _Watch()
    modules = dict(model.named_modules())
    norms = [n for n, m in modules.items() if isinstance(m, _BatchNorm) and m.track_running_stats and m.affine]
    layers = [name for name, module in modules.items() if isinstance(module, WEIGHTED)]
    before = {name: partial(watch.read, name) for name in norms}
    surgery.watched(model, example, watch, before=before, after={name: partial(watch.written, name) for name in layers})
    return watch.pairs()


@final
class FrozenNorms:
    """A forward pre-hook that has batch norms use their running statistics, and leave them alone, once `frozen`.

    >>> norms, net = FrozenNorms(), nn.Sequential(nn.BatchNorm1d(2))
    >>> norms.put_on(net)
    >>> norms.frozen = True
    >>> net.train()(torch.ones(1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(self) -> None:
        self.frozen = False

    def __call__(self, module: nn.Module, _args: object) -> None:
        """Called before the forward pass of `module`."""
        if self.frozen and module.training:
            module.training = False  # again at each call: whoever trains puts the whole model into training mode

    def put_on(self, model: nn.Module) -> None:
        """Watch over every batch norm of `model`."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(self)

    @staticmethod
    def take_off(model: nn.Module) -> None:
        """Leave the batch norms of `model`."""
        for module in model.modules():
            for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, FrozenNorms)]:
                del module._forward_pre_hooks[key]


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which layer wrote which tensor, and how often each is used; the tensors are kept, so that no two share an id."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writers: dict[int, tuple[str, Tensor]] = {}
        self.readers: dict[str, int] = {}
        self.calls: Counter[str] = Counter()
        self.uses: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.uses.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))

    def written(self, name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.calls[name] += 1
        self.writers[id(output)] = (name, output)
        self.uses[id(output)] = 0  # a tensor that is gone may have had this id

    def read(self, name: str, _module: nn.Module, args: Any) -> None:
        self.calls[name] += 1
        if id(args[0]) in self.writers:  # looked up now: a tensor that nobody keeps lends its id to a later one
            self.readers[name] = id(args[0])

    def pairs(self) -> dict[str, str]:
        """Norms with the layer before them."""
        found = {}
        for norm, key in self.readers.items():
            layer, _ = self.writers[key]
            if self.calls[norm] == self.calls[layer] == self.uses[key] == 1:
                found[norm] = layer
        return found


def _scaled(weight: Stored, factor: Tensor) -> Stored:
    """A layer's weight times a factor for each output channel; codes keep their size, their sign follows the factor."""
    if weight.codes is None:
        return replace(weight, value=weight.value * along(factor, 0, weight.value.dim()))
    assert weight.scale is not None
    number = len(factor)
    if weight.levels is not None:
        return weight.chosen(weight.codes, weight.levels, weight.scale.expand(number) * factor, axis=0)
    assert weight.zero_point is not None
    grouped, dims = weight.groups, weight.codes.dim()

    def spread(values: Tensor) -> Tensor:
        return along(values, 0, dims) if grouped is None else by_group(values, grouped, dims)

    factor = factor if grouped is None else factor[:, None]
    scale = weight.scale.expand(weight.scale.shape or (number,)) * factor.abs()
    zero = weight.zero_point.expand(scale.shape)
    dead = scale < torch.finfo(scale.dtype).tiny
    sign = torch.where(dead, torch.zeros_like(scale), factor.sign()).to(torch.int32)
    centred = (weight.codes - spread(zero)) * spread(sign)
    if not weight.symmetric:  # a grid that is turned around counts from its other end
        zero = torch.where(sign < 0, 2**weight.bits - 1 - zero, zero)
    return weight.coded(
        centred + spread(zero),
        torch.where(dead, torch.ones_like(scale), scale),
        zero,
        bits=weight.bits,
        axis=None if grouped is not None else 0,
        symmetric=weight.symmetric,
        groups=grouped,
    )


def can_fold(weight: Stored) -> bool:
    """Whether a factor for each output channel fits into the weight: not where scales lie along another dimension."""
    return weight.codes is None or weight.axis in (None, 0)


def folded(compact: Compact, norm: str, into: str) -> Compact:
    """The model with batch norm `norm` folded into the layer `into` before it; outputs stay, codes stay up to sign."""
    layer = compact.model.get_submodule(norm)
    assert isinstance(layer, _BatchNorm)
    stored = dict(compact.stored)
    gamma, beta, mean, var = (
        stored.pop(surgery.dotted(norm, name)).value for name in ("weight", "bias", "running_mean", "running_var")
    )
    stored.pop(surgery.dotted(norm, "num_batches_tracked"), None)
    factor = gamma / torch.sqrt(var + layer.eps)
    weight_name, bias_name = surgery.dotted(into, "weight"), surgery.dotted(into, "bias")
    bias = stored[bias_name].value if bias_name in stored else torch.zeros_like(mean)
    stored[weight_name] = _scaled(stored[weight_name], factor)
    stored[bias_name] = Stored(beta + (bias - mean) * factor)
    edit = edits.fold(norm, into)
    model = edits.replay(compact.model, [edit])
    with torch.no_grad():
        target: Any = model.get_submodule(into)
        target.weight.copy_(stored[weight_name].value)
        target.bias.copy_(stored[bias_name].value)
    return Compact(model, stored, [*compact.edits, edit])
