import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.stored import Stored
from lightning_compress.quantize import affine
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer
from lightning_compress.quantize.gates import GatedInput, GatedWeight, Gates, chance, residual

GATES = {2: (-6.0, 6.0), 4: (6.0, -6.0), 8: (6.0, 6.0)}


def some(*shape: int, seed: int = 3) -> Tensor:
    return 0.3 * torch.randn(*(shape or (6, 5, 3)), generator=torch.Generator().manual_seed(seed)) + 0.05


def weight_quantizer(bits: int, weight: Tensor, *, prune: bool = False) -> GatedWeight:
    quantizer = GatedWeight(8, prune=prune)
    quantizer.start(weight)
    quantizer.finer.logits.data.copy_(torch.tensor(GATES[bits]))
    return quantizer


def input_quantizer(bits: int, *, signed: bool) -> GatedInput:
    quantizer = GatedInput(8)
    quantizer.start(torch.tensor([-1.3 if signed else 0.0, 2.1, 0.6]))
    quantizer.finer.logits.data.copy_(torch.tensor(GATES[bits]))
    return quantizer.eval()


def fix(quantizer: nn.Module) -> None:
    for module in quantizer.modules():
        if isinstance(module, Gates):
            module.fix()


# ----------------------------------------------------------------------------------------------------- gates


def test_the_probability_of_an_open_gate_is_the_closed_form_and_that_of_the_draws() -> None:
    logits = torch.tensor([-3.0, -1.0, 0.0, 1.0])
    # z = 0 where the stretched sigmoid is below 0: with u the noise, u < sigmoid(T logit(1/12) - logit).
    shut = torch.sigmoid(2.0 / 3.0 * math.log((1 / 12) / (11 / 12)) - logits)
    torch.testing.assert_close(1.0 - chance(logits), shut)
    torch.manual_seed(0)
    gates = Gates(4, 0.0)
    gates.logits.data.copy_(logits)
    with torch.no_grad():
        drawn = torch.stack([gates.sample() for _ in range(4000)])
    torch.testing.assert_close((drawn > 0).float().mean(0), 1.0 - shut, atol=0.03, rtol=0.0)
    assert float(drawn.min()) == 0.0
    assert float(drawn.max()) == 1.0
    assert ((drawn > 0) & (drawn < 1)).any()


def test_a_gate_is_shut_when_it_is_zero_with_more_than_a_third() -> None:
    edge = 2.0 / 3.0 * math.log(1 / 11) - math.log(0.34 / 0.66)
    gates = Gates(2, 0.0)
    gates.logits.data.copy_(torch.tensor([edge - 0.01, edge + 0.01]))
    assert gates.now().tolist() == [0.0, 1.0]
    gates.fix()
    gates.logits.data.neg_().add_(9.0)
    assert gates.now().tolist() == [0.0, 1.0]


def test_draws_have_a_gradient() -> None:
    torch.manual_seed(0)
    gates = Gates(1000, 0.0)
    torch.autograd.backward(gates.sample().sum())
    grad = gates.logits.grad
    assert grad is not None
    assert grad.isfinite().all()
    assert (grad >= 0).all()
    assert 0.2 < float((grad > 0).float().mean()) < 0.9


# ---------------------------------------------------------------------------------------------- residual grids


@pytest.mark.parametrize(("gates", "bits"), [((0.0, 0.0), 2), ((0.0, 1.0), 2), ((1.0, 0.0), 4), ((1.0, 1.0), 8)])
def test_residuals_add_up_to_ordinary_uniform_quantization(gates: tuple[float, float], bits: int) -> None:
    x = torch.rand(2000, generator=torch.Generator().manual_seed(0)).double() * 3.0
    scale = 3.0 / (2**bits - 1)
    wanted = (x / scale).round() * scale
    found = residual(x, torch.tensor(1.0).double(), [torch.tensor(gate).double() for gate in gates])
    torch.testing.assert_close(found, wanted)


def test_residuals_by_hand() -> None:
    one, zero, half = torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.5)
    x = torch.tensor([0.93, -1.29])
    assert residual(x, one, (zero, one)).tolist() == [1.0, -1.0]
    torch.testing.assert_close(residual(x, one, (one, zero)), torch.tensor([1.0, -1.2]))  # left: -0.07, -0.29
    last = torch.tensor([-6 / 85, -8 / 85])  # of -0.07 in steps of 1/85, and of -0.09
    wanted = torch.tensor([1.0, -1.0]) + half * torch.tensor([0.0, -0.2]) + half * half * last
    torch.testing.assert_close(residual(x, one, (half, half)), wanted)


def test_gradients_reach_weights_gates_and_range() -> None:
    torch.manual_seed(0)
    weight = some().requires_grad_()
    quantizer = GatedWeight(8, initial=0.5)
    quantizer.start(weight.detach())
    assert {name for name, _ in quantizer.named_parameters()} == {"finer.logits", "reach", "channels.logits"}
    for _ in range(20):
        (quantizer(weight) * some(seed=4)).sum().backward()
    for tensor in (weight, *quantizer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


def test_the_gate_of_four_bits_has_what_it_adds_as_its_gradient() -> None:
    four, eight = torch.tensor(0.5, requires_grad=True), torch.tensor(0.25, requires_grad=True)
    torch.autograd.backward(residual(torch.tensor([1.27]), torch.tensor(1.0), (four, eight)).sum())
    assert four.grad is not None
    assert eight.grad is not None
    # 1.27 = 1 + 0.2 + 0.07, and 0.07 is 6 steps of 1/85.
    assert float(four.grad) == pytest.approx(0.2 + 0.25 * 6 / 85)
    assert float(eight.grad) == pytest.approx(0.5 * 6 / 85)


# ------------------------------------------------------------------------------------ once gates are fixed


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fixed_weights_are_stored_bit_for_bit_as_ordinary_codes(bits: int) -> None:
    weight = some()
    quantizer = weight_quantizer(bits, weight)
    evaluated = copy.deepcopy(quantizer).eval()(weight).detach()
    fix(quantizer)
    out = quantizer.train()(weight).detach()
    assert torch.equal(out, evaluated)
    stored = quantizer.store(Stored(weight))
    assert torch.equal(stored.value, out)
    assert quantizer.bits == stored.bits == bits
    assert stored.codes is not None
    assert stored.scale is not None
    assert int(stored.codes.abs().max()) == 2 ** (bits - 1) - 1
    reach = weight.abs().max()
    torch.testing.assert_close(stored.scale, 2.0 * reach / (2**bits - 1))
    wanted = affine.codes(weight, stored.scale, torch.tensor(0.0), -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1)
    assert torch.equal(stored.codes.float(), wanted)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_of_fixed_grids_are_those_of_a_learned_range(bits: int) -> None:
    """With step s = 2 r / n and v = x / s: round(v) - v of each step inside, and the sign outside, for the range r."""
    weight, upstream, steps = some(20, 30), some(20, 30, seed=4), 2**bits - 1
    quantizer = weight_quantizer(bits, weight)
    fix(quantizer)
    with torch.no_grad():
        quantizer.reach.fill_(0.4)
    latent = weight.clone().requires_grad_()
    torch.autograd.backward(quantizer(latent), upstream)
    place = weight.double().clamp(-0.4 * (1 - 1e-6), 0.4 * (1 - 1e-6)) / (0.8 / steps)
    inside = weight.abs() < 0.4
    assert 0 < int(inside.sum()) < inside.numel()
    slope = (place.round() - place) * 2 / steps + torch.where(inside, 0.0, weight.sign())
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad, upstream * inside)
    assert quantizer.reach.grad is not None
    torch.testing.assert_close(quantizer.reach.grad.double(), (upstream * slope).sum(), rtol=1e-4, atol=1e-5)


def test_shut_channels_are_zero_and_the_last_one_stays() -> None:
    weight = some()
    quantizer = weight_quantizer(4, weight, prune=True)
    assert quantizer.channels is not None
    quantizer.channels.logits.data.copy_(torch.tensor([6.0, -6.0, 6.0, -6.0, 6.0, 6.0]))
    fix(quantizer)
    out, stored = quantizer(weight).detach(), quantizer.store(Stored(weight))
    assert torch.equal(stored.value, out)
    assert [bool(row.any()) for row in out] == [True, False, True, False, True, True]
    quantizer = weight_quantizer(4, weight, prune=True)
    assert quantizer.channels is not None
    quantizer.channels.logits.data.copy_(torch.tensor([-9.0, -8.0, -7.0, -9.0, -9.0, -9.0]))
    assert [bool(row.any()) for row in quantizer.eval()(weight)] == [False, False, True, False, False, False]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_deployed_inputs_are_those_of_training_bit_for_bit(bits: int, signed: bool) -> None:
    quantizer = input_quantizer(bits, signed=signed)
    x = torch.cat([3.0 * torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.tensor([2.1, -2.1, 9.0])])
    grid = quantizer.fixed()
    assert torch.equal(grid(x), quantizer(x).detach())
    assert grid.bits == quantizer.bits == bits
    assert int(grid.zero_point) == 0
    assert (grid.low < 0) == signed
    fix(quantizer)
    assert torch.equal(quantizer.train()(x).detach(), grid(x))
    quantizer.set_bits(8)
    assert quantizer.bits == bits


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e30])
def test_nothing_to_go_by_is_no_reason_for_a_nan(value: float) -> None:
    weight = torch.full((3, 4), value)
    quantizer = GatedWeight(8)
    quantizer.start(weight)
    for _ in range(2):
        tensor = weight.clone().requires_grad_()
        quantizer(tensor).sum().backward()
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        fix(quantizer)
    assert torch.equal(quantizer.store(Stored(weight)).value, quantizer(weight).detach())


def test_bfloat16_and_zeros() -> None:
    weight = torch.where(some() > 0.1, some(), 0.0).bfloat16()
    quantizer = weight_quantizer(4, weight.float())
    assert quantizer(weight).dtype == torch.bfloat16
    assert not quantizer(weight)[weight == 0].any()
    assert torch.equal(quantizer.eval()(weight), quantizer(weight.float()).bfloat16())


@pytest.mark.parametrize("made", [GatedWeight, GatedInput])
def test_off_means_untouched_with_learnables_in_the_graph(made: Any) -> None:
    quantizer: WeightQuantizer | InputQuantizer = made(8)
    x = some().requires_grad_()
    if isinstance(quantizer, WeightQuantizer):
        quantizer.start(x.detach())
    quantizer.active = False
    out = quantizer(x)
    assert torch.equal(out, x)
    out.sum().backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in quantizer.learnables())


def test_what_is_paid_for() -> None:
    quantizer = GatedWeight(8)
    quantizer.start(some())
    assert quantizer.channels is not None
    quantizer.finer.logits.data.copy_(torch.tensor([0.0, 1.0]))
    quantizer.channels.logits.data.copy_(torch.tensor([0.0, 9.0, 9.0, -9.0, 1.0, 2.0]))
    four, eight = (float(chance(torch.tensor(value))) for value in (0.0, 1.0))
    kept = sum(float(chance(torch.tensor(value))) for value in (0.0, 9.0, 9.0, -9.0, 1.0, 2.0)) / 6
    assert float(quantizer.cost().detach()) == pytest.approx(2 * kept + 4 * kept * four + 8 * kept * four * eight)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_fixed_quantizers_compile() -> None:
    quantizer = weight_quantizer(4, some(), prune=True)
    fix(quantizer)
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(some()), quantizer(some()))
    drawn = weight_quantizer(4, some(), prune=True)
    torch.compile(drawn, backend="aot_eager", fullgraph=True)(some()).sum().backward()
    assert drawn.finer.logits.grad is not None
