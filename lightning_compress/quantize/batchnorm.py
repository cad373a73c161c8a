"""Batch norms that follow a layer directly, and folding them into it (Jacob et al., arXiv 1712.05877, section 3.2)."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_compress.core import edits
from lightning_compress.core.method import Compact
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import Stored, along


def pairs(model: nn.Module, example: Any) -> dict[str, str]:
    """Batch norms by name, each with the layer whose output is its input, found by running `example` once.

    >>> pairs(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), torch.ones(2, 2))
    {'1': '0'}
    """
    watch = _Watch()
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, WEIGHTED):
            handles.append(module.register_forward_hook(partial(watch.written, name)))
        elif isinstance(module, _NormBase) and module.track_running_stats and module.affine:
            handles.append(module.register_forward_pre_hook(partial(watch.read, name)))
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return watch.pairs


class _Watch:
    """Which layer wrote which tensor; the tensors are kept, so that no two share an id."""

    def __init__(self) -> None:
        self.writers: dict[int, tuple[str, Tensor]] = {}
        self.pairs: dict[str, str] = {}

    def written(self, name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.writers[id(output)] = (name, output)

    def read(self, name: str, _module: nn.Module, args: Any) -> None:
        if id(args[0]) in self.writers:
            self.pairs[name] = self.writers[id(args[0])][0]


def _scaled(weight: Stored, factor: Tensor) -> Stored:
    """A layer's weight times a factor for each output channel; codes keep their size, their sign follows the factor."""
    if weight.codes is None:
        return replace(weight, value=weight.value * along(factor, 0, weight.value.dim()))
    assert weight.scale is not None
    dead = factor == 0
    sign = torch.where(dead, torch.zeros_like(factor), factor.sign()).to(weight.codes.dtype)
    scale = weight.scale.expand(len(factor)) * factor.abs()
    return weight.coded(
        weight.codes * along(sign, 0, weight.codes.dim()),
        torch.where(dead, torch.ones_like(scale), scale),
        bits=weight.bits,
        axis=0,
        symmetric=True,
    )


def can_fold(weight: Stored) -> bool:
    """Whether a factor for each output channel fits into the weight: raw, or symmetric codes with a scale a channel."""
    return weight.codes is None or (weight.symmetric and weight.axis == 0)


def folded(compact: Compact, norm: str, into: str) -> Compact:
    """The model with batch norm `norm` folded into the layer `into` before it; outputs stay, codes stay up to sign."""
    layer = compact.model.get_submodule(norm)
    assert isinstance(layer, _NormBase)
    stored = dict(compact.stored)
    gamma, beta, mean, var = (
        stored.pop(f"{norm}.{name}").value for name in ("weight", "bias", "running_mean", "running_var")
    )
    stored.pop(f"{norm}.num_batches_tracked", None)
    factor = gamma / torch.sqrt(var + layer.eps)
    bias = stored[f"{into}.bias"].value if f"{into}.bias" in stored else torch.zeros_like(mean)
    stored[f"{into}.weight"] = _scaled(stored[f"{into}.weight"], factor)
    stored[f"{into}.bias"] = Stored(beta + (bias - mean) * factor)
    edit = edits.fold(norm, into)
    model = edits.replay(compact.model, [edit])
    with torch.no_grad():
        target: Any = model.get_submodule(into)
        target.weight.copy_(stored[f"{into}.weight"].value)
        target.bias.copy_(stored[f"{into}.bias"].value)
    return Compact(model, stored, [*compact.edits, edit])
