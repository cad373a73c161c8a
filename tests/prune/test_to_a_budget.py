"""`Prune` to a share of multiply-accumulates, parameters or milliseconds, against models that were really cut."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import read_stored
from lightning_compress.core.method import Compact
from lightning_compress.core.schedule import Linear
from lightning_compress.core.surgery import plain
from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.prune.method import Prune
from tests.prune import graphs

Shapes = Mapping[str, tuple[int, int]]
IMAGE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out


def net() -> nn.Module:
    torch.manual_seed(0)
    return ResNetCIFAR(8, shortcut="B").eval()


def pruned(model: nn.Module, x: Tensor, **amount: Any) -> nn.Module:
    """The model at the end of a schedule, cut."""
    method = Prune(every=1, **amount)
    model = method.attach(copy.deepcopy(model), x)
    method.update(model, 0.5)
    method.update(model, 1.0)
    model = plain(model).eval()
    return method.finalize(Compact(model, read_stored(model), []), x).model


def all_macs(model: nn.Module, x: Tensor) -> float:
    return float(sum(macs(model, x).values()))


COUNTS: dict[str, Callable[[nn.Module, Tensor], float]] = {
    "macs": all_macs,
    "params": lambda model, x: float(num_params(model)),
}


@pytest.mark.parametrize(("by", "share", "allocation"), [("macs", 0.48, "uniform"), ("params", 0.1, "overall")])
def test_macs_and_params_of_the_model_that_was_cut(by: str, share: float, allocation: str) -> None:
    model, count = net(), COUNTS[by]
    small = pruned(model, IMAGE, pattern="channel", allocation=allocation, **{by: Linear(1.0, share)})
    assert share - 0.005 < count(small, IMAGE) / count(model, IMAGE) <= share


def test_a_count_keeps_to_its_multiple() -> None:
    model = net()
    small = pruned(model, IMAGE, pattern="channel", macs=0.5, round_to=4)
    widths = {layer.out_channels for layer in small.modules() if isinstance(layer, nn.Conv2d)}
    assert all(width % 4 == 0 for width in widths)
    assert 0.45 < all_macs(small, IMAGE) / all_macs(model, IMAGE) <= 0.5


def test_blocks_go_until_the_budget_is_met() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), *(Residual() for _ in range(4))).eval()
    for by, count in COUNTS.items():
        small = pruned(model, IMAGE, pattern="block", **{by: 0.6})
        assert 0.4 < count(small, IMAGE) / count(model, IMAGE) <= 0.6


@pytest.mark.parametrize("pattern", ["unstructured", "3x2", "row"])
def test_zeros_in_place_are_parameters_that_do_not_stay(pattern: str) -> None:
    model = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 5))
    method = Prune(params=0.4, pattern=pattern)
    masked = method.attach(copy.deepcopy(model), torch.zeros(1, 10))
    method.update(masked, 1.0)
    left = sum(int(parameter.count_nonzero()) for parameter in plain(masked).parameters())
    assert 0.4 * num_params(model) - 10 < left <= 0.4 * num_params(model)


def test_single_weights_are_chosen_at_once() -> None:
    method = Prune(params=0.1)
    model = method.attach(nn.Sequential(nn.Linear(100, 60), nn.ReLU(), nn.Linear(60, 10)), torch.zeros(1, 100))
    calls: list[float] = []
    allocation = method.allocation

    def counted(scores: dict[str, Tensor], sparsity: float, multiple: int) -> Any:
        calls.append(sparsity)
        return allocation(scores, sparsity, multiple)

    method.allocation = counted
    method.update(model, 1.0)
    left = sum(int(parameter.count_nonzero()) for parameter in plain(model).parameters())
    assert 667 - 4 <= left <= 667
    assert len(calls) == 1


def stepwise(model: nn.Module, example: Any) -> Callable[[Shapes], float]:
    """A device that takes channels in fours."""

    def price(shapes: Shapes) -> float:
        return float(sum(-(-outs // 4) * -(-ins // 4) for outs, ins in shapes.values()))

    return price


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
def test_what_costs_no_time_is_kept(share: float) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    small: Any = pruned(model, torch.zeros(1, 8), pattern="channel", latency=share, price=stepwise)
    shapes = {name: tuple(layer.weight.shape) for name, layer in small.named_children() if hasattr(layer, "weight")}
    whole = stepwise(model, None)({"0": (16, 8), "2": (32, 16), "4": (4, 32)})
    assert stepwise(model, None)(shapes) <= share * whole
    assert shapes["0"][0] % 4 == shapes["2"][0] % 4 == 0
    for more in ({"0": (shapes["0"][0] + 4, 8)}, {"2": (shapes["2"][0] + 4, shapes["2"][1])}):
        wider = {**shapes, **more}
        wider = {"0": wider["0"], "2": (wider["2"][0], wider["0"][0]), "4": (4, wider["2"][0])}
        assert stepwise(model, None)(wider) > share * whole


def test_a_gradual_budget_never_gives_back() -> None:
    method = Prune(macs=Linear(1.0, 0.3), pattern="channel", every=1)
    model = method.attach(net(), IMAGE)
    before = method._pattern.keep()  # type: ignore[union-attr]
    for progress in (0.25, 0.5, 0.75, 1.0):
        for parameter in model.parameters():
            nn.init.normal_(parameter)  # every score is another
        told = method.update(model, progress)
        now = method._pattern.keep()  # type: ignore[union-attr]
        assert all(bool((before[name] >= now[name]).all()) for name in now)
        assert told == {"prune/amount": pytest.approx(0.7 * progress)}
        before = now


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two amounts": ({"sparsity": 0.5, "macs": 0.5}, "a budget .macs, params, latency., one of them; got"),
    "nothing left": ({"macs": 0.0}, r"macs is the share that stays, in \(0, 1\]; got 0"),
    "percent": ({"params": 48}, r"params is the share that stays, in \(0, 1\]; got 48"),
    "by layer": ({"macs": {"": 0.5}}, "macs is one number or schedule for all layers; got the mapping"),
    "in place": ({"macs": 0.5}, "macs is saved by what is removed for real: write pattern=channel"),
    "blocks": ({"latency": 0.5, "pattern": "block"}, "latency is saved by what .* pattern=channel or pattern=head;"),
    "no table": ({"latency": 0.5, "pattern": "channel"}, "latency comes from a table: give measure.table=FILE"),
    "out of reach": ({"macs": 0.001, "pattern": "channel"}, "a budget of .* cannot be met"),
    "fixed": ({"params": 0.5, "pattern": "2:4"}, "no threshold or budget"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=list(WRONG))
def test_wrong_budgets(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Prune(**arguments).attach(net(), IMAGE)


def test_heads_have_budgets() -> None:
    model, x = graphs.Encoder().eval(), torch.zeros(1, 6, 24)
    small = pruned(model, x, pattern="head", params=0.9)
    assert 0.7 < num_params(small) / num_params(model) <= 0.9
