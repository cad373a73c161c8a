"""Costs without running the model against the model that was cut, and the published points."""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.schedule import Polynomial
from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.models.vgg_cifar import VGGCIFAR
from lightning_compress.prune import allocate
from lightning_compress.prune.budget import macs_cost, params_cost, sparsity_for
from lightning_compress.prune.channels import Channel
from lightning_compress.prune.groups import cuts, groups
from lightning_compress.prune.method import Prune
from lightning_compress.prune.scores import magnitude
from tests.prune import graphs, removing

CIFAR = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("build", [graphs.Dense, graphs.Excited, graphs.Shuffled, graphs.UNet])
def test_the_cost_is_that_of_the_model_that_was_cut(build: Callable[[], nn.Module]) -> None:
    model, x = build().eval(), torch.zeros(1, 3, 8, 8)
    found = groups(model, x, removing.layers(model))
    cost, params = macs_cost(model, x, found), params_cost(model, found)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        keep = {root: torch.rand(group.size, generator=draw) < 0.5 for root, group in found.items()}
        for kept in keep.values():
            kept[0] = True
        small = edits.replay(copy.deepcopy(model), cuts(model, found, keep))
        assert round(cost(keep), 6) == sum(macs(small, x).values())
        assert round(params(keep), 6) == num_params(small)


def test_heads_cost_parameters_and_products_too() -> None:
    model, x = graphs.Encoder(), torch.zeros(1, 6, 24)
    found = groups(model, x, removing.layers(model), heads=True)
    keep = {root: torch.arange(6) < 4 for root in found}
    small = edits.replay(copy.deepcopy(model), cuts(model, found, keep))
    assert round(params_cost(model, found)(keep), 6) == num_params(small)
    assert round(macs_cost(model, x, found)(keep), 6) == sum(macs(small, x).values())


def test_a_ramp_in_eights_ends_at_its_budget() -> None:
    """Equal shares in eights go down by cliffs; what fell off one on the way must not end far below."""
    torch.manual_seed(0)
    net, x = ResNetCIFAR(20, shortcut="B"), torch.zeros(2, 3, 32, 32)
    method = Prune(macs=Polynomial(first=1.0, last=0.476, end=0.6), pattern="channel", round_to=8, every=1)
    model = method.attach(net, x)
    for step in range(1, 31):
        method.update(model, step / 30)
    pattern = method._pattern
    assert isinstance(pattern, Channel)
    plain = surgery.plain(model)
    small = edits.replay(plain, cuts(plain, pattern.groups, pattern.keep()))
    assert all(layer.out_channels % 8 == 0 for layer in small.modules() if isinstance(layer, nn.Conv2d))
    assert 0.45 < sum(macs(small, x).values()) / sum(macs(ResNetCIFAR(20, shortcut="B"), x).values()) <= 0.476


def test_a_budget_that_cannot_be_met() -> None:
    choose = partial(allocate.uniform, {"a": torch.arange(8.0)})

    def cost(keep: dict[str, Tensor]) -> float:
        return 100.0 + float(keep["a"].sum())

    with pytest.raises(ValueError, match="a budget of 100 cannot be met: the cost is 108 as it is and 101 with all"):
        sparsity_for(choose, cost, 100.0)
    assert sparsity_for(choose, cost, 108.0) == 0.0
    assert cost(choose(sparsity_for(choose, cost, 104.0))) == 104.0
    assert cost(choose(sparsity_for(choose, cost, 104.9))) == 104.0


@pytest.mark.parametrize(
    ("allocation", "speedup"), [(allocate.overall, 2.11), (allocate.overall, 2.57), (allocate.uniform, 2.57)]
)
def test_resnet_56_at_the_speedups_of_depgraph(allocation: Any, speedup: float) -> None:
    """Fang 2023, arXiv 2301.12900: speed-ups there are ratios of multiply-accumulates."""
    torch.manual_seed(0)
    base = ResNetCIFAR(56, shortcut="B")
    model = copy.deepcopy(base)
    pattern = Channel(model, CIFAR[..., :8, :8], removing.layers(model))
    cost, dense = macs_cost(model, CIFAR, pattern.groups), sum(macs(base, CIFAR).values())
    scores = {root: magnitude(units) for root, units in pattern.view().items()}
    sparsity = sparsity_for(partial(allocation, scores), cost, dense / speedup)
    keep = allocation(scores, sparsity)
    small = edits.replay(base, cuts(base, pattern.groups, keep))
    assert speedup <= dense / sum(macs(small, CIFAR).values()) <= 1.02 * speedup
    started = time.process_time()
    for _ in range(10):
        cost(keep)
    assert (time.process_time() - started) / 10 < 2e-3  # 0.2 ms on a quiet machine


def resnet(depth: int) -> nn.Module:
    return ResNetCIFAR(depth)


def first_convs(depth: int, shares: tuple[float, float, float], skip: set[int]) -> dict[str, float]:
    """Li 2017: the first conv of each block, numbered 2, 4, ... over the network; `shares` go from the three stages."""
    blocks = (depth - 2) // 6
    return {
        f"layer{stage + 1}.{block}.conv1": shares[stage]
        for stage in range(3)
        for block in range(blocks)
        if 2 * (stage * blocks + block + 1) not in skip
    }


# Li 2017 cuts off the number kept, not the number removed: of 16, 32 and 64 channels 14, 28 and 57 stay at 10 %.
TENTH = (2 / 16, 4 / 32, 7 / 64)
PUBLISHED = {
    "resnet56-A": (resnet(56), first_convs(56, TENTH, {16, 20, 38, 54}), (1.12e8, 0.104), (7.7e5, 0.094)),
    "resnet56-B": (
        resnet(56),
        first_convs(56, (10 / 16, 10 / 32, 7 / 64), {16, 18, 20, 34, 38, 54}),
        (9.09e7, 0.276),
        (7.3e5, 0.137),
    ),
    "resnet110-A": (resnet(110), first_convs(110, (0.5, 0.0, 0.0), {36}), (2.13e8, 0.159), (1.68e6, 0.023)),
    "vgg16-A": (
        VGGCIFAR(16),
        {f"features.conv{n}": 0.5 for n in (1, 8, 9, 10, 11, 12, 13)},
        (2.06e8, 0.342),
        (5.4e6, 0.640),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_counts_of_li_2017(name: str) -> None:
    """Arxiv 1608.08710, table 1, to the digits printed there."""
    base, shares, (flops, flops_gone), (params, params_gone) = PUBLISHED[name]
    model = copy.deepcopy(base)
    layers = {layer: model.get_submodule(layer) for layer in shares}
    pattern = Channel(model, CIFAR if name == "vgg16-A" else CIFAR[..., :8, :8], layers)
    keep = {
        layer: allocate.uniform({layer: magnitude(filters)}, shares[layer])[layer]
        for layer, filters in pattern.view().items()
    }
    assert keep.keys() == shares.keys()
    small = removing.cut(pattern, model, CIFAR, keep).model
    for layer, share in shares.items():
        whole, left = (len(net.get_parameter(f"{layer}.weight")) for net in (base, small))
        assert left == round(whole * (1 - share))
    dense, now = sum(macs(base, CIFAR).values()), sum(macs(small, CIFAR).values())
    assert float(f"{now:.2e}") == flops
    assert 1 - now / dense == pytest.approx(flops_gone, abs=7e-4)  # some of the published digits are cut off
    assert num_params(small) == pytest.approx(params, abs=1e4)
    assert 1 - num_params(small) / num_params(base) == pytest.approx(params_gone, abs=7e-4)
