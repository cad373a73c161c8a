"""What every quantizer promises, for each key of the tables of `Quantize`: a row here for each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_compress.core import surgery
from lightning_compress.core.compressor import read_stored
from lightning_compress.core.mask import Mask
from lightning_compress.core.stored import Stored
from lightning_compress.quantize import gates, learned, levels, lowbit, uniform
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer, rows
from lightning_compress.quantize.named import ACTIVATIONS, WEIGHTS


@dataclass(frozen=True)
class Row:
    """A quantizer by its key, and what sets it apart."""

    name: str
    bits: tuple[int, ...] = (2, 3, 4, 8)
    options: dict[str, Any] = field(default_factory=dict)
    #: Quantizing what is quantized changes nothing; not where levels follow from statistics that quantizing moves.
    idempotent: bool = True
    #: Rounding and clipping let the gradient of all weights through, or of all but those beyond a learned range.
    learned: int = 0
    #: Whether gates choose the bits, so that nobody else sets them; fixed, they have a gradient of zero.
    chosen: bool = False


#: Logits of the gates that leave so many bits: open for 4, open for 8.
_GATES = {2: (-6.0, 6.0), 4: (6.0, -6.0), 8: (6.0, 6.0)}


def _fixed(quantizer: Any, bits: int) -> Any:
    quantizer.finer.logits.data.copy_(torch.tensor(_GATES[bits]))
    quantizer.finer.fix()
    return quantizer


def _gated_weight(bits: int) -> WeightQuantizer:
    """Weights whose gates are fixed; how they are drawn before is in test_gates.py."""
    return _fixed(gates.GatedWeight(8, prune=False), bits)  # type: ignore[no-any-return]


def _gated_input(bits: int) -> InputQuantizer:
    return _fixed(gates.GatedInput(8), bits)  # type: ignore[no-any-return]


#: The tables of `Quantize`, and what `BayesianBits` puts in their place.
_WEIGHTS: dict[str, Callable[..., WeightQuantizer]] = {**WEIGHTS, "gated": _gated_weight}
_ACTIVATIONS: dict[str, Callable[..., InputQuantizer]] = {**ACTIVATIONS, "gated": _gated_input}

# Without `stochastic`, which in training draws, so that nothing here but the mean is promised: see test_uniform.py.
_ROWS = [
    Row("uniform"),
    Row("uniform", options={"per_channel": False}),
    Row("uniform", (1, 2, 5, 8), {"symmetric": False}),
    Row("uniform", (1, 4), {"symmetric": False, "per_channel": False}),
    Row("uniform", (3, 4), {"group_size": 2}),
    Row("uniform", (4,), {"group_size": 3, "symmetric": False}),
    Row("uniform", (2, 4), {"cover": "mse"}, idempotent=False),
    Row("uniform", (4,), {"cover": "percentile", "ewgs": 0.01}, idempotent=False),
    Row("seed_affine", (1, 2, 4, 8)),
    Row("lsq", learned=1),
    Row("lsq", (2, 4), {"per_channel": True, "ewgs": 0.01}, learned=1),
    Row("lsq_plus", learned=1),
    Row("dorefa", (1, 2, 4, 8), idempotent=False),
    Row("ternary", (2,)),
    Row("ternary", (2,), {"per_channel": True}),
    Row("ttq", (2,), learned=2),
    Row("binary", (1,)),
    Row("binary", (1,), {"per_channel": False, "straight": True}),
    Row("apot", (2, 3, 4, 5, 6), learned=1),
    Row("apot", (4,), {"normalize": True}, idempotent=False, learned=1),
    Row("powers_of_two", (2, 3, 4, 6), learned=1),
    Row("gated", (2, 4, 8), learned=2, chosen=True),
]
_INPUTS = [
    Row("observed", (1, 2, 4, 8)),
    Row("lsq", learned=1),
    Row("lsq", (4,), {"ewgs": 0.01}, learned=1),
    Row("lsq_plus", (1, 2, 4, 8), learned=2),
    Row("pact", learned=1),
    Row("pact", (4,), {"bound": 1.5}, learned=1),
    Row("dorefa"),
    Row("gated", (2, 4, 8), learned=2, chosen=True),
]


def _expanded(table: list[Row]) -> list[Any]:
    cases = [(row, bits) for row in table for bits in row.bits]
    return [pytest.param(row, bits, id=f"{row.name}-{row.options or ''}-{bits}") for row, bits in cases]


every_weight = pytest.mark.parametrize(("row", "bits"), _expanded(_ROWS))
every_input = pytest.mark.parametrize(("row", "bits"), _expanded(_INPUTS))


def _each(table: list[Row], *, settable: bool = False) -> pytest.MarkDecorator:
    kept = [row for row in table if not (settable and row.chosen)]
    return pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.name}-{row.options or ''}") for row in kept])


one_of_each, one_input = _each(_ROWS), _each(_INPUTS)
one_with_bits, one_input_with_bits = _each(_ROWS, settable=True), _each(_INPUTS, settable=True)


def some(*shape: int, seed: int = 3) -> Tensor:
    return 0.3 * torch.randn(*(shape or (6, 5, 3)), generator=torch.Generator().manual_seed(seed)) + 0.05


def weight_quantizer(row: Row, bits: int, weight: Tensor | None = None) -> WeightQuantizer:
    made = _WEIGHTS[row.name](bits, **row.options)
    made.start(some() if weight is None else weight)
    return made


def input_quantizer(row: Row, bits: int, *, signed: bool = True) -> InputQuantizer:
    made = _ACTIVATIONS[row.name](bits, **row.options)
    made.start(torch.tensor([-1.3 if signed else 0.0, 2.1, 0.6]))
    return made.eval()


def under_mask(row: Row, bits: int, weight: Tensor) -> tuple[Any, Mask]:
    """A layer with a mask below the quantizer and, where it must be, above."""
    layer: Any = nn.Module()
    layer.weight = nn.Parameter(weight)
    mask = Mask.on(layer, "weight", tuple(weight.shape))
    mask.mask.copy_(weight.abs() > 0.2)
    quantizer = weight_quantizer(row, bits, weight)
    parametrize.register_parametrization(layer, "weight", quantizer)
    for again in [] if quantizer.exact_zero else surgery.masks_on(layer, "weight"):
        parametrize.register_parametrization(layer, "weight", again)
    return layer, mask


def test_every_quantizer_of_the_tables_has_a_row() -> None:
    assert {row.name for row in _ROWS} == _WEIGHTS.keys()
    assert {row.name for row in _INPUTS} == _ACTIVATIONS.keys()
    made = {type(_WEIGHTS[row.name](row.bits[0], **row.options)) for row in _ROWS}
    made_of_inputs = {type(_ACTIVATIONS[row.name](row.bits[0], **row.options)) for row in _INPUTS}
    homes = (gates, learned, levels, lowbit, uniform)
    assert made == {kind for home in homes for kind in _kinds(home, WeightQuantizer)}
    assert made_of_inputs == {kind for home in homes for kind in _kinds(home, InputQuantizer)}


def _kinds(home: Any, base: type) -> list[type]:
    found = [kind for kind in vars(home).values() if isinstance(kind, type) and issubclass(kind, base)]
    return [kind for kind in found if kind.__module__ == home.__name__]


# ---------------------------------------------------------------------------------------------------- weights


@every_weight
def test_what_is_stored_is_what_was_computed_bit_for_bit(row: Row, bits: int) -> None:
    weight = some()
    quantizer = weight_quantizer(row, bits, weight)
    stored = quantizer.store(Stored(weight))
    assert torch.equal(stored.value, quantizer(weight).detach())
    assert torch.equal(stored.dequantize(), stored.value)
    assert stored.bits == quantizer.bits == bits
    assert stored.codes is not None
    assert int(stored.codes.min()) + (2 ** (bits - 1) - 1 if stored.levels is None and stored.symmetric else 0) >= 0
    top = 2 ** (bits - 1) - 1 if stored.levels is None and stored.symmetric else 2**bits - 1
    assert int(stored.codes.max()) <= top


@every_weight
def test_masked_weights_are_zero_in_training_and_on_disk(row: Row, bits: int) -> None:
    layer, mask = under_mask(row, bits, some())
    gone = mask.mask == 0
    assert 0 < int(gone.sum()) < gone.numel()
    assert not layer.weight[gone].any()
    stored = read_stored(layer)["weight"]
    assert torch.equal(stored.value, layer.weight.detach())
    assert not stored.value[gone].any()
    assert stored.value[~gone].any()


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (5, 7)])
@one_of_each
def test_layouts_and_shapes_do_not_matter(row: Row, shape: tuple[int, ...]) -> None:
    weight = some(*shape)
    odd = weight.to(memory_format=torch.channels_last) if len(shape) == 4 else weight.T.contiguous().T
    quantizer = weight_quantizer(row, row.bits[-1], weight)
    assert torch.equal(quantizer(odd), quantizer(weight))


@every_weight
def test_few_values_in_order_that_stay_when_quantized_again(row: Row, bits: int) -> None:
    weight = some()
    quantizer = weight_quantizer(row, bits, weight)
    out = quantizer(weight).detach()
    axis = None if quantizer.group_size is not None else quantizer.axis
    parts = [(weight.flatten()[None], out.flatten()[None])] if axis is None else [(rows(weight, 0), rows(out, 0))]
    if quantizer.group_size is not None:
        size = quantizer.group_size
        parts = [(weight[:, i : i + size].flatten(1), out[:, i : i + size].flatten(1)) for i in range(0, 5, size)]
    for before, after in parts:
        for latent, row_of in zip(before, after, strict=True):
            assert len(row_of.unique()) <= 2**bits
            assert (row_of[latent.argsort()].diff() >= 0).all()
    if row.idempotent:
        torch.testing.assert_close(quantizer(out), out, atol=1e-6, rtol=1e-6)


@every_weight
def test_the_range_is_respected(row: Row, bits: int) -> None:
    weight = some()
    quantizer = weight_quantizer(row, bits, weight)
    near, far = (quantizer.store(Stored(factor * weight)) for factor in (1.0, 10.0))
    assert torch.equal(far.value, quantizer(10.0 * weight).detach())
    if row.learned and row.options.get("normalize") is None:  # the ends are the same, and what lies beyond is at them
        grids = [quantizer.store(Stored(factor * weight)) for factor in (10.0, 1000.0)]
        assert all(grid.scale is not None and torch.equal(grid.scale, near.scale) for grid in grids)  # type: ignore[arg-type]
        assert all(grid.levels is None or torch.equal(grid.levels, near.levels) for grid in grids)  # type: ignore[arg-type]
        assert torch.equal(grids[0].value.amax(), grids[1].value.amax())
        assert torch.equal(grids[0].value.amin(), grids[1].value.amin())
    else:  # the range is that of the weight as it is, or DoReFa's [-1, 1]; a percentile's or a mean's lies inside
        most = 1.0 if row.name == "dorefa" and bits > 1 else 10.0 * float(weight.abs().max())
        assert far.scale is not None
        rounded = 0.0 if far.symmetric else 0.5 * float(far.scale.max())  # the zero point moves the range by so much
        assert float(far.value.abs().max()) <= (most + rounded) * 1.00001


@every_weight
def test_exact_zero_is_as_declared(row: Row, bits: int) -> None:
    weight = torch.where(some() > 0.1, some(), 0.0)
    quantizer = weight_quantizer(row, bits, weight)
    stayed = not quantizer(weight)[weight == 0].any()
    assert stayed == quantizer.exact_zero or not quantizer.exact_zero


@one_of_each
def test_bfloat16_weights_are_computed_in_float32(row: Row) -> None:
    weight = some().bfloat16()
    quantizer = weight_quantizer(row, row.bits[0], weight)
    out = quantizer(weight)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quantizer(weight.float()).bfloat16())
    half = copy.deepcopy(quantizer).bfloat16()
    assert half(weight).dtype == torch.bfloat16
    assert half.bits == row.bits[0]


@one_of_each
def test_gradients_in_bfloat16_are_those_in_float32_rounded(row: Row) -> None:
    weight, upstream = some(40, 30).bfloat16(), some(40, 30, seed=4).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        quantizer = weight_quantizer(row, row.bits[-1], weight.float())
        latent = weight.to(dtype, copy=True).requires_grad_()
        torch.autograd.backward(quantizer(latent), upstream.to(dtype))
        assert latent.grad is not None
        assert latent.grad.dtype == dtype
        assert all(parameter.grad is not None for parameter in quantizer.learnables())
        found.append([latent.grad.float(), *[p.grad for p in quantizer.learnables()]])
    for rounded, exact in zip(*found, strict=True):
        # Of a learned step: each slope is rounded, their sum is not.
        torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.01 * float(exact.abs().max()) + 1e-6)


@every_weight
def test_gradients_reach_the_weight_and_what_is_learned(row: Row, bits: int) -> None:
    weight = some().requires_grad_()
    quantizer = weight_quantizer(row, bits, weight.detach())
    assert len(quantizer.learnables()) == row.learned
    (quantizer(weight) * some(seed=4)).sum().backward()
    for name, tensor in (("weight", weight), *quantizer.named_parameters()):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any() == (name != "finer.logits")  # gates that are fixed
    assert (weight.grad != 0).float().mean() > 0.5  # type: ignore[union-attr]


@one_of_each
def test_off_means_untouched_with_learnables_in_the_graph(row: Row) -> None:
    weight = some().requires_grad_()
    quantizer = weight_quantizer(row, row.bits[0])
    quantizer.active = False
    out = quantizer(weight)
    assert torch.equal(out, weight)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))  # type: ignore[arg-type]
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in quantizer.learnables())
    stored = Stored(weight.detach())
    assert quantizer.store(stored) is stored


@one_with_bits
def test_bits_change_in_place_and_go_through_a_checkpoint(row: Row) -> None:
    first, last = row.bits[0], row.bits[-1]
    weight = some()
    quantizer = weight_quantizer(row, last, weight)
    buffers = dict(quantizer.named_buffers())
    quantizer.set_bits(first)
    assert quantizer.bits == first
    assert all(tensor is buffers[name] for name, tensor in quantizer.named_buffers())
    again = weight_quantizer(row, last, weight + 1.0)
    again.load_state_dict(quantizer.state_dict())
    assert again.bits == first
    assert torch.equal(again(weight), quantizer(weight))
    again.set_bits(first)  # as happens after a checkpoint is loaded
    assert torch.equal(again(weight), quantizer(weight))


@pytest.mark.parametrize("bits", [0, 9])
@one_with_bits
def test_bits_out_of_range_are_refused(row: Row, bits: int) -> None:
    with pytest.raises(ValueError, match=rf"takes (\d to \d|exactly \d) bits, got {bits}|expected 2 to 8 bits"):
        WEIGHTS[row.name](bits, **row.options)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 1e30])
@every_weight
def test_nothing_to_go_by_is_no_reason_for_a_nan(row: Row, bits: int, value: float) -> None:
    weight = some()
    weight[1] = value
    flat = torch.full((3, 4), value)
    for tensor in (weight, flat) if value < 1 else (weight,):
        tensor = tensor.clone().requires_grad_()
        quantizer = weight_quantizer(row, bits, tensor.detach())
        out = quantizer(tensor)
        out.sum().backward()
        assert out.isfinite().all()
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert torch.equal(quantizer.store(Stored(tensor.detach())).value, out.detach())


# Dynamo itself makes an instance of torch.autograd.Function, which torch warns of.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def _compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    return torch.compile(module, backend="aot_eager", fullgraph=True)


@compiles
@one_of_each
def test_training_compiles_without_a_break_and_bits_change_without_another_graph(row: Row) -> None:
    found = []
    for call in (lambda module: module, _compiled):
        weight = some().requires_grad_()
        quantizer = weight_quantizer(row, row.bits[-1], weight.detach())
        function = call(quantizer)
        function(weight).square().sum().backward()
        quantizer.set_bits(row.bits[0])
        with torch.compiler.set_stance("fail_on_recompile" if call is _compiled else "default"):
            out = function(weight)
        found.append([out.detach(), weight.grad, *[p.grad for p in quantizer.learnables()]])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain)


# ---------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("signed", [True, False])
@every_input
def test_deployed_inputs_are_those_of_training_bit_for_bit(row: Row, bits: int, signed: bool) -> None:
    quantizer = input_quantizer(row, bits, signed=signed)
    x = 3.0 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    fixed = quantizer.fixed()
    assert torch.equal(fixed(x), quantizer(x).detach())
    assert fixed.bits == quantizer.bits == bits
    assert not fixed(torch.zeros(1)).any()
    out = quantizer(x).detach()
    assert len(out.unique()) <= 2**bits
    assert (out[x.argsort()].diff() >= 0).all()
    torch.testing.assert_close(quantizer(out), out)
    assert (out.amin() < 0) == (signed and not (row.name in ("observed", "lsq_plus") and bits == 1))


@pytest.mark.parametrize("signed", [True, False])
@every_input
def test_inputs_beyond_the_range_are_at_its_ends(row: Row, bits: int, signed: bool) -> None:
    quantizer = input_quantizer(row, bits, signed=signed)
    grid = quantizer.fixed()
    low, high = ((end - int(grid.zero_point)) * float(grid.scale) for end in (grid.low, grid.high))
    out = quantizer(torch.tensor([[-1e4, 1e4], [low, high], [2 * low - 1.0, 2 * high]])).detach()
    torch.testing.assert_close(out, torch.tensor([[low, high]]).expand(3, 2))


@one_input
def test_bfloat16_inputs(row: Row) -> None:
    quantizer = input_quantizer(row, row.bits[-1])
    x = torch.randn(4, 50).bfloat16()
    out = quantizer(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quantizer(x.float()).bfloat16())


@pytest.mark.parametrize("signed", [True, False])
@every_input
def test_gradients_of_inputs(row: Row, bits: int, signed: bool) -> None:
    quantizer = input_quantizer(row, bits, signed=signed)
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).mul(2.0).requires_grad_()
    assert len(quantizer.learnables()) == row.learned
    upstream = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    (quantizer(x) * upstream).sum().backward()
    assert x.grad is not None
    # Nothing beyond the range, everything well inside.
    grid = quantizer.fixed()
    low, high = ((end - int(grid.zero_point)) * float(grid.scale) for end in (grid.low, grid.high))
    assert not x.grad[(x < low - grid.scale) | (x > high + grid.scale)].any()
    inside = (x > low + grid.scale) & (x < high - grid.scale)
    assert (x.grad[inside] != 0).all()
    for name, tensor in quantizer.named_parameters():
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any() == (name != "finer.logits")  # gates that are fixed


@one_input
def test_ranges_are_noted_only_while_training_and_observing(row: Row) -> None:
    quantizer = input_quantizer(row, 4)
    x = torch.tensor([[-1.0, 3.0], [0.5, 2.0]])
    quantizer(x)
    assert not quantizer.seen.any()
    quantizer.train()(x)
    assert quantizer.seen[0] < 0 < quantizer.seen[1]
    seen = quantizer.seen.clone()
    quantizer.observing = False
    quantizer(10 * x)
    assert torch.equal(quantizer.seen, seen)


@one_input
def test_inputs_pass_untouched_while_off(row: Row) -> None:
    quantizer = input_quantizer(row, 4)
    quantizer.active = False
    x = torch.randn(3, 4, requires_grad=True)
    out = quantizer(x)
    assert torch.equal(out, x)
    out.sum().backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in quantizer.learnables())


@pytest.mark.parametrize("signed", [True, False])
@one_input_with_bits
def test_bits_of_inputs_change_in_place_and_go_through_a_checkpoint(row: Row, signed: bool) -> None:
    quantizer = input_quantizer(row, 8, signed=signed)
    low = quantizer.low
    quantizer.set_bits(2)
    assert quantizer.low is low
    assert quantizer.bits == 2
    again = ACTIVATIONS[row.name](8, **row.options)
    again.load_state_dict(quantizer.state_dict())
    again.eval().set_bits(2)
    x = torch.randn(100)
    assert torch.equal(again(x), quantizer(x))
    assert torch.equal(again.fixed()(x), quantizer(x).detach())


@compiles
@one_input
def test_inputs_compile_without_a_break(row: Row) -> None:
    found = []
    for call in (lambda module: module, _compiled):
        quantizer = input_quantizer(row, 8).train()
        quantizer.observing = quantizer.observes
        x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
        function = call(quantizer)
        function(x).square().sum().backward()
        quantizer.set_bits(4)
        with torch.compiler.set_stance("fail_on_recompile" if call is _compiled else "default"):
            out = function(x)
        found.append([out.detach(), x.grad, quantizer.seen, *[p.grad for p in quantizer.learnables()]])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain)
