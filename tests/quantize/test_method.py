from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_compress.core import edits
from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.schedule import Linear, Steps
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.quantizers import InputQuantizer, WeightQuantizer


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 4, generator=generator) * (i + 1), torch.zeros(16)) for i in range(count)]


def quantized(layer: Any) -> bool:
    return parametrize.is_parametrized(layer, "weight") and isinstance(
        layer.parametrizations.weight[-1], WeightQuantizer
    )


def ready(method: Quantize, model: Any = None) -> tuple[Any, Compressor]:
    model, compressor = model or net(), Compressor([method])
    compressor.attach(model, torch.randn(2, 4))
    compressor.prepare(model, batches())
    compressor.horizon = 10
    return model, compressor


def step(model: Any, compressor: Compressor, scale: float = 1.0) -> None:
    model.train()(scale * batches(1)[0][0])
    compressor.update(model)


def test_excluded_layers_are_untouched() -> None:
    model = net()
    Quantize(4, 4, exclude=["<first>", "<last>"]).attach(model, torch.randn(2, 4))
    assert [quantized(model[i]) for i in (0, 3, 5)] == [False, True, False]
    assert [hasattr(model[i], "input_quantizer") for i in (0, 3, 5)] == [False, True, False]
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(("weight", "activation"), [(4, None), (None, 8), (4, 8)])
def test_either_side_alone(weight: int | None, activation: int | None) -> None:
    model, compressor = ready(Quantize(weight, activation))
    step(model, compressor)
    assert quantized(model[3]) == (weight is not None)
    assert hasattr(model[3], "input_quantizer") == (activation is not None)
    compact = compressor.finalize(model, None)
    x = torch.randn(5, 4)
    torch.testing.assert_close(compact.model(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    stored = compact.stored["3.weight"]
    assert (stored.codes is not None) == (weight is not None)


def test_calibration_is_the_widest_range_of_the_float_model() -> None:
    model, reference = net(), net()
    model.eval()
    reference.eval().requires_grad_(False)
    method = Quantize(2, 8, calibration_batches=3)
    method.attach(model, torch.randn(2, 4))
    method.prepare(model, iter(batches()))
    inputs = [x for x, _ in batches(3)]
    for index, (low, high) in {
        0: (min(x.min() for x in inputs), max(x.max() for x in inputs)),
        3: (torch.tensor(0.0), max(reference[:3](x).max() for x in inputs)),
    }.items():
        quantizer = model[index].input_quantizer
        torch.testing.assert_close(quantizer.range.tolist(), [float(low), float(high)])
        torch.testing.assert_close(quantizer.scale, (high - low) / 255)
    assert method._active


def test_calibration_restores_modes_and_takes_no_more_batches_than_asked() -> None:
    model = net()
    model[1].eval()
    before = model[1].running_mean.clone()
    method = Quantize(calibration_batches=2)
    method.attach(model, torch.randn(2, 4))
    source = iter(batches(3))
    method.prepare(model, source)
    assert len(list(source)) == 1
    assert model.training
    assert not model[1].training
    assert torch.equal(model[1].running_mean, before)


def test_no_batch_to_calibrate_on() -> None:
    model, method = net(), Quantize()
    method.attach(model, torch.randn(2, 4))
    with pytest.raises(ValueError, match="no batch to calibrate on"):
        method.prepare(model, [])


def test_ranges_follow_the_batches_as_a_moving_average() -> None:
    model, compressor = ready(Quantize(8, 8, momentum=0.75))
    quantizer: InputQuantizer = model[0].input_quantizer
    running = quantizer.range.clone()
    for scale in (0.5, 3.0):
        step(model, compressor, scale)
        x = scale * batches(1)[0][0]
        running = 0.75 * running + 0.25 * torch.stack([x.min(), x.max()])
        torch.testing.assert_close(quantizer.range, running)
        torch.testing.assert_close(quantizer.scale, (running[1] - running[0]) / 255)
        torch.testing.assert_close(quantizer.zero_point, (-running[0] / quantizer.scale).round())


def test_min_max_only_widens() -> None:
    model, compressor = ready(Quantize(8, 8, observer="min_max"))
    before = model[0].input_quantizer.range.clone()
    step(model, compressor, 0.01)
    assert torch.equal(model[0].input_quantizer.range, before)
    step(model, compressor, 100.0)
    assert torch.equal(model[0].input_quantizer.range, 100 * torch.stack(torch.aminmax(batches(1)[0][0])))


def test_evaluation_moves_nothing() -> None:
    model, compressor = ready(Quantize())
    step(model, compressor)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()(torch.randn(8, 4) * 50)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_start_and_freeze() -> None:
    model, compressor = ready(Quantize(2, 2, start=0.3, freeze=0.6))
    x = torch.randn(50, 4)
    for count in range(1, 11):
        before = model[0].input_quantizer.range.clone()
        step(model, compressor, 2.0 + count)
        on = count >= 3
        assert (len(model[3].weight[0].unique()) <= 3) == on
        assert (len(model[0].input_quantizer(x).unique()) <= 4) == on
        assert torch.equal(before, model[0].input_quantizer.range) == (count > 6)


def test_finalize_before_the_start_is_the_float_model() -> None:
    model, compressor = ready(Quantize(2, 2, start=0.5))
    compact = compressor.finalize(model, None)
    x = torch.randn(6, 4)
    torch.testing.assert_close(compact.model(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, FixedQuantizer) for module in compact.model.modules())
    assert all(stored.codes is None for stored in compact.stored.values())


def test_bits_follow_their_schedules_there_and_back() -> None:
    model, compressor = ready(Quantize(Steps(values=[8, 4, 8], at=[0.3, 0.6]), Linear(first=8, last=2)))
    seen = []
    for _ in range(10):
        step(model, compressor)
        seen.append((model[3].parametrizations.weight[0].bits, model[3].input_quantizer.bits))
        quantizer = model[3].input_quantizer
        expected = (quantizer.range[1] - quantizer.range[0]) / (2**quantizer.bits - 1)
        torch.testing.assert_close(quantizer.scale, expected)  # the scale follows the bits at once
    assert [weight for weight, _ in seen] == [8, 8, 4, 4, 4, 8, 8, 8, 8, 8]
    assert [activation for _, activation in seen] == [round(8 - 6 * s / 10) for s in range(1, 11)]


def test_state_goes_through_a_checkpoint() -> None:
    def method() -> Quantize:
        return Quantize(Steps(values=[8, 3, 8], at=[0.3, 0.7]), 4, start=0.2, freeze=0.5)

    model, first = ready(method())
    for _ in range(6):
        step(model, first)
    again, second = net(), Compressor([method()])
    second.attach(again, torch.randn(2, 4))
    again.load_state_dict(model.state_dict())
    second.load_state_dict(first.state_dict())
    second.prepare(again, [])  # done already: not asked again
    for _ in range(4):
        step(model, first, 5.0)
        step(again, second, 5.0)
    assert again[3].parametrizations.weight[0].bits == 8
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    x = torch.randn(3, 4)
    assert torch.equal(model.eval()(x), again.eval()(x))


def test_going_back_to_an_earlier_checkpoint() -> None:
    model, compressor = ready(Quantize(Steps(values=[8, 3, 8], at=[0.3, 0.7]), None))
    for _ in range(5):
        step(model, compressor)
    states = [{key: value.clone() for key, value in model.state_dict().items()}, compressor.state_dict()]
    for _ in range(4):
        step(model, compressor)
    model.load_state_dict(states[0])
    compressor.load_state_dict(states[1])
    seen = []
    for _ in range(4):
        step(model, compressor)
        seen.append(model[3].parametrizations.weight[0].bits)
    assert seen == [3, 8, 8, 8]


@torch.no_grad()
def lived(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2.0)
            module.weight.normal_(0.3, 1.0)
            module.bias.normal_()
    return model


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (3, None)])
def test_the_deployed_model_is_the_trained_one(bits: Any, symmetric: bool, per_channel: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 1, 8, 8)
    method = Quantize(*bits, symmetric=symmetric, per_channel=per_channel)
    compressor = Compressor([method])
    model = compressor.attach(lived(SmallConv()), x)
    compressor.prepare(model, [(x, None)])
    compressor.update(model)
    model.eval()
    compact = compressor.finalize(model, x)
    assert set(compact.stored) == set(compact.model.state_dict())
    for name, tensor in compact.model.state_dict().items():
        assert torch.equal(compact.stored[name].value, tensor)
        assert torch.equal(compact.stored[name].dequantize(), tensor)
    folded = {edit["norm"] for edit in compact.edits}
    assert folded == ({"bn1", "bn2", "bn3"} if per_channel and symmetric else set())
    norms = [module for module in compact.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 - len(folded)
    # Compared layer by layer: a sum that rounds another way may move an activation by a whole step.
    for name in ("conv1", "conv2", "conv3", "fc"):
        if bits[1] is not None:
            fixed, live = compact.model.get_submodule(name).input_quantizer, model.get_submodule(name).input_quantizer
            seen = torch.randn(1000) * 2
            assert torch.equal(fixed(seen), live(seen))  # type: ignore[operator]
    wanted = model(x).detach()
    off = (compact.model(x) - wanted).abs() / wanted.abs().max()
    assert float(off.median()) < 1e-5
    assert float(off.max()) < {None: 1e-5, 8: 0.02, 4: 0.3}[bits[1]]
    for name in ("conv1", "conv2", "conv3", "fc"):
        stored = compact.stored[f"{name}.weight"]
        assert (stored.bits, stored.symmetric, stored.axis) == (bits[0], symmetric, 0 if per_channel else None)
    # And edits with the state rebuild it.
    rebuilt = edits.replay(SmallConv(), compact.edits)
    kept = {name: value for name, value in compact.model.state_dict().items() if "input_quantizer" not in name}
    rebuilt.load_state_dict(kept)


def test_excluded_layers_fold_their_norm_as_floats() -> None:
    x = torch.randn(8, 1, 8, 8)
    compressor = Compressor([Quantize(4, None, exclude=["conv1"])])
    model = compressor.attach(lived(SmallConv()), x)
    compressor.update(model)
    compact = compressor.finalize(model, x)
    assert compact.stored["conv1.weight"].codes is None
    torch.testing.assert_close(compact.model(x), model.eval()(x), atol=1e-4, rtol=1e-4)


def test_after_channel_pruning_and_under_a_mask() -> None:
    x = torch.randn(8, 1, 8, 8)
    stack = [Prune(0.5, pattern="channel", every=1), Prune(0.3, every=1), Quantize(4, None)]
    compressor = Compressor(stack)
    model = compressor.attach(lived(SmallConv()), x)
    compressor.update(model)
    compact = compressor.finalize(model, x)
    torch.testing.assert_close(compact.model(x), model.eval()(x), atol=1e-4, rtol=1e-4)
    weight = compact.stored["conv2.weight"]
    assert weight.value.shape[0] == 16
    assert weight.mask is not None
    assert not weight.value[~weight.mask].any()
    assert torch.equal(weight.dequantize(), compact.model.state_dict()["conv2.weight"])


def test_a_bare_layer() -> None:
    compressor = Compressor([Quantize(8, 8)])
    model = compressor.attach(nn.Linear(4, 2), torch.randn(2, 4))
    compressor.prepare(model, batches())
    compressor.update(model)
    compact = compressor.finalize(model, None)
    assert set(compact.stored) == set(compact.model.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(compact.model(x), model.eval()(x))


def test_finalize_leaves_the_model_in_training() -> None:
    model, compressor = ready(Quantize(4, 4))
    step(model, compressor)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compressor.finalize(model, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model[0].input_quantizer, InputQuantizer)
    model(torch.randn(4, 4)).sum().backward()
    assert model[0].parametrizations.weight.original.grad.any()


@pytest.mark.parametrize("side", ["weight", "input"])
def test_a_quantizer_that_is_off_is_an_error(side: str) -> None:
    method = Quantize()
    model, compressor = ready(method)
    for quantizer in (method._weights if side == "weight" else method._inputs).values():
        quantizer.active = False
    assert "off though progress is past start=0.0" in str(method.missing_effect(model, 0.5))
    assert str(method.missing_effect(model, 0.5)).startswith(f"the {side} quantizers of 0, 3, 5")
    del compressor


def test_a_layer_that_is_never_called_is_an_error() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    model, compressor = ready(Quantize(), Skips())
    with pytest.raises(NoEffectError, match="the inputs of unused have an empty range: were these layers never called"):
        step(model, compressor)


def test_no_alarm_before_the_start() -> None:
    method = Quantize(start=0.5)
    assert [method.settled(p) for p in (0.0, 0.49, 0.5)] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": None, "activation_bits": None}, "both null"),
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, got 1"),
        ({"weight_bits": 32}, "weight_bits must be 2 to 8, got 32; write null for float"),
        ({"activation_bits": Linear(first=8, last=1)}, "activation_bits must be 2 to 8, got 1"),
        ({"start": 1.0}, "start, freeze and momentum"),
        ({"start": 0.5, "freeze": 0.4}, "start, freeze and momentum"),
        ({"momentum": 1.0}, "start, freeze and momentum"),
        ({"calibration_batches": 0}, "calibration_batches must be at least 1"),
        ({"observer": "minmax"}, "did you mean 'min_max'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**options)


def test_no_layer_matched() -> None:
    with pytest.raises(ValueError, match=r"Quantize matched no layer: select='conv'"):
        Quantize(select="conv").attach(net(), None)
