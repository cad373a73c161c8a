"""Models pruned by a pattern alone: masked at once, then cut."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import edits
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact
from lightning_compress.prune.channels import KINDS
from lightning_compress.prune.patterns import Pattern


@torch.no_grad()
def lived(model: nn.Module) -> nn.Module:
    """The model as after training: no statistic, scale or shift where it was initialised."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2.0)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm) and module.affine:
            module.weight.normal_(0.5, 1.0)  # some negative
            module.bias.normal_()
    return model


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """All layers of `model` whose channels may go."""
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def random_keep(pattern: Pattern, seed: int) -> dict[str, Tensor]:
    """Each name at a ratio of its own between 0.1 and 0.9, the units drawn at random; one at least stays, one goes."""
    draw = torch.Generator().manual_seed(seed)
    keep = {}
    for name, kept in pattern.keep().items():
        gone = round(len(kept) * float(torch.empty(()).uniform_(0.1, 0.9, generator=draw)))
        order = torch.randperm(len(kept), generator=draw)
        keep[name] = torch.ones(len(kept), dtype=torch.bool)
        keep[name][order[: min(max(gone, 1), len(kept) - 1)]] = False
    return keep


def cut(pattern: Pattern, model: nn.Module, example: Any, keep: dict[str, Tensor]) -> Compact:
    """The small model; `model` is left masked, in eval mode."""
    pattern.apply(keep)
    return pattern.finalize(Compressor([]).finalize(model.eval(), example))


@torch.no_grad()
def check(base: nn.Module, masked: nn.Module, compact: Compact, example: Tensor, tolerance: float = 1e-4) -> None:
    """The small model puts out what the masked one does, and its edits alone make its shape of the base network."""
    wanted, got = masked(example), compact.model(example)
    assert torch.isfinite(wanted).all()
    assert wanted.abs().max() > 1e-3
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert set(compact.stored) == set(compact.model.state_dict())
    assert all(torch.equal(compact.stored[key].value, value) for key, value in compact.model.state_dict().items())
    rebuilt = edits.replay(base, json.loads(json.dumps(compact.edits))).eval()
    rebuilt.load_state_dict(compact.model.state_dict())
    assert torch.equal(rebuilt(example), got)
