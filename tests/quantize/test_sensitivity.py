import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.compressor import Compressor
from lightning_compress.cost.bops import relative_bops
from lightning_compress.cost.macs import macs
from lightning_compress.cost.record import layer_table, operands
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.base import WeightQuantizer
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.sensitivity import Sensitivity, allocate, errors, traces
from lightning_compress.quantize.uniform import Uniform


def exact(loss: Any, *leaves: Tensor) -> tuple[list[float], list[float]]:
    """Traces of the blocks of the Hessian, from the Hessian itself, and the standard deviation of one probe of each."""
    blocks: Any = torch.autograd.functional.hessian(loss, leaves)  # type: ignore[no-untyped-call]
    sizes = [leaf.numel() for leaf in leaves]
    flat = [[blocks[i][j].reshape(a, b) for j, b in enumerate(sizes)] for i, a in enumerate(sizes)]
    spreads = []
    for i, row in enumerate(flat):
        beside = sum(float(block.square().sum()) for j, block in enumerate(row) if j != i)
        spreads.append((2 * float((row[i] - row[i].diag().diag()).square().sum()) + beside) ** 0.5)
    return [float(flat[i][i].trace()) for i in range(len(leaves))], spreads


def test_a_diagonal_hessian_takes_one_probe() -> None:
    x = torch.tensor([0.5, -2.0, 3.0], requires_grad=True)
    y = torch.tensor([1.0], requires_grad=True)
    loss = (torch.tensor([1.0, 2.0, 3.0]) * x**2).sum() + 5.0 * y.square().sum()
    assert traces(loss, [x, y], 1, torch.Generator()) == [12.0, 10.0]


def test_a_quadratic_with_neighbours_comes_near() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator)
    matrix = root @ root.T
    x = torch.randn(6, generator=generator, requires_grad=True)
    (found,) = traces(0.5 * x @ matrix @ x, [x], 300, generator)
    (wanted,), (spread,) = exact(lambda x: 0.5 * x @ matrix @ x, x.detach())
    assert wanted == pytest.approx(float(matrix.trace()), rel=1e-5)
    assert 1e-6 < abs(found - wanted) < 3 * spread / 300**0.5


def test_logistic_regression_and_the_layer_below_it() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(12, 3, generator=generator), torch.randint(3, (12,), generator=generator)
    first = torch.randn(4, 3, generator=generator, requires_grad=True)
    last = torch.randn(3, 4, generator=generator, requires_grad=True)

    def loss(below: Tensor, above: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(torch.tanh(F.linear(inputs, below)), above), targets)

    found = traces(loss(first, last), [first, last], 200, generator)
    for got, wanted, spread in zip(found, *exact(loss, first.detach(), last.detach()), strict=True):
        assert abs(got - wanted) < 3 * spread / 200**0.5
        assert 3 * spread / 200**0.5 < 0.5 * abs(wanted)  # so that it says something


def test_errors_are_those_of_the_codes() -> None:
    weight = torch.tensor([[7.0, 2.4, -1.0], [0.7, 0.24, 0.0]])
    found = errors(Uniform(8), weight, [2, 4])
    assert found[4] == pytest.approx(0.4**2 + 0.04**2)
    assert found[2] == pytest.approx(2.4**2 + 1.0 + 0.24**2)  # steps of 7 and 0.7


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_all_choices_is_found(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    names, choices = "abcde", (2, 3, 4, 8)
    sizes = torch.randint(1, 9, (5,), generator=generator).tolist()
    losses = {name: {bits: float(torch.rand((), generator=generator)) for bits in choices} for name in names}
    costs: dict[str, dict[int, float]] = {
        name: {bits: size * bits for bits in choices} for name, size in zip(names, sizes, strict=True)
    }
    budget = 4 * sum(sizes)
    every = [dict(zip(names, bits, strict=True)) for bits in itertools.product(choices, repeat=5)]

    def total(table: Any, bits: dict[str, int]) -> float:
        return float(sum(table[name][number] for name, number in bits.items()))

    best = min(total(losses, bits) for bits in every if total(costs, bits) <= budget)
    found = allocate(losses, costs, budget)
    assert list(found) == list(names)
    assert total(costs, found) <= budget
    assert total(losses, found) == pytest.approx(best, abs=1e-12)


def test_a_budget_too_small_says_what_the_least_is() -> None:
    with pytest.raises(ValueError, match="the fewest bits everywhere cost 6, beyond the budget of 5"):
        allocate({"a": {2: 0.0, 4: 0.0}}, {"a": {2: 6, 4: 12}}, 5)


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)) for _ in range(3)]


def ready(*methods: Any, model: Any = None) -> tuple[Any, Compressor]:
    model, compressor = model or net(), Compressor(methods)
    compressor.attach(model, torch.randn(2, 6))
    compressor.prepare(model, batches())
    return model, compressor


def bits_of(model: Any) -> list[int]:
    return [module.bits for module in model.modules() if isinstance(module, WeightQuantizer)]


def test_a_layer_that_the_loss_does_not_feel_gets_the_fewest_bits() -> None:
    model = net()
    with torch.no_grad():
        model[4].weight[:, :] = 0.0
        model[4].weight[:, 0] = torch.tensor([3.0, -3.0, 0.0])
        model[2].weight[0] *= 3.0
        model[0].weight *= 5.0
    choice = Sensitivity(weight_bytes=(8 * 48 + 8 * 256 + 2 * 96) / 8, choices=(2, 8), probes=64)
    model, _ = ready(Quantize(choice, 8), model=model)
    assert bits_of(model)[1] == 8
    again, _ = ready(Quantize(Sensitivity(weight_bytes=(48 + 256 + 96) * 8 / 8), 8))
    assert bits_of(again) == [8, 8, 8]


@pytest.mark.parametrize(("share", "bits"), [(0.0325, 2), (0.0424, 2), (0.045, 4), (0.0625, 8)])
def test_relative_bops_are_those_of_the_finalized_model(share: float, bits: int) -> None:
    model, compressor = ready(Quantize(Sensitivity(relative_bops=share), {"^0$": 4, "": 8}, ends=8))
    assert bits_of(model) == [8, bits, 8]
    compact = compressor.finalize(model, torch.ones(1, 6))
    names = ("0", "2", "4")
    weights = {name: compact.stored[f"{name}.weight"].bits for name in names}
    inputs: Any = {name: compact.model.get_submodule(f"{name}.input_quantizer").bits for name in names}
    assert list(weights.values()) == [8, bits, 8]
    assert relative_bops(macs(compact.model, torch.ones(1, 6)), weights, inputs) <= share


class _LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(inputs)[0][:, -1])
        return outputs


def test_states_of_a_recurrent_layer_are_floats_to_the_budget() -> None:
    model, compressor = _LastState(), Compressor([Quantize(Sensitivity(relative_bops=0.13), 8)])
    example = torch.randn(32, 4, 6)
    compressor.attach(model, example)
    compressor.prepare(model, [(example, torch.randint(3, (32,)))])
    compact = compressor.finalize(model, example)
    rows = layer_table(compact.model, compact.stored, example)
    assert 0.08 < relative_bops(*operands(compact.model, compact.stored, rows)) <= 0.13


def test_what_is_fixed_or_float_counts_against_the_budget() -> None:
    with pytest.raises(ValueError, match=r"Sensitivity: the fewest bits everywhere cost .* write a larger one"):
        ready(Quantize(Sensitivity(relative_bops=0.02), 8, exclude=["<last>"]))


def test_bits_live_through_updates_and_a_checkpoint() -> None:
    method = Quantize(Sensitivity(weight_bytes=230), None, weights="lsq", start=0.5)
    model, compressor = ready(method)
    compressor.horizon = 4
    found = bits_of(model)
    assert len(set(found)) > 1
    for _ in range(4):
        compressor.update(model)
    assert bits_of(model) == found
    twin, other = net(), Compressor([Quantize(Sensitivity(weight_bytes=230), None, weights="lsq", start=0.5)])
    other.attach(twin, torch.randn(2, 6))
    assert bits_of(twin) == [8, 8, 8]
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(compressor.state_dict())
    other.update(twin)
    assert bits_of(twin) == found
    x = torch.randn(4, 6)
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_nothing_is_left_on_the_model() -> None:
    model, _ = ready(Prune(0.9), Quantize(Sensitivity(weight_bytes=200), None))
    quantizers = [module for module in model.modules() if isinstance(module, WeightQuantizer)]
    assert not any(quantizer._forward_hooks for quantizer in quantizers)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs one budget"),
        ({"relative_bops": 0.1, "weight_bytes": 10}, "needs one budget"),
        ({"relative_bops": 0.1, "probes": 0}, "needs choices, batches and probes"),
        ({"relative_bops": 0.1, "loss": "cross_entrpy"}, "Sensitivity: loss: no 'cross_entrpy' .*'cross_entropy'"),
    ],
)
def test_wrong_settings(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sensitivity(**options)


def test_choices_that_the_quantizer_does_not_take_and_no_data() -> None:
    with pytest.raises(ValueError, match="Quantize: weight_bits: Ternary takes exactly 2 bits, got 4"):
        Quantize(Sensitivity(relative_bops=0.1, choices=(2, 4)), 8, weights="ternary")
    model, compressor = net(), Compressor([Quantize(Sensitivity(relative_bops=0.1), None)])
    compressor.attach(model, None)
    with pytest.raises(ValueError, match="Sensitivity: no batch to look at"):
        compressor.prepare(model, [])
