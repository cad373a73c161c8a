from functools import partial
from typing import Any, final

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lightning_compress
from lightning_compress.core import edits
from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.schedule import Linear, Steps
from lightning_compress.core.stored import Stored
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.prune.method import Prune
from lightning_compress.quantize import affine
from lightning_compress.quantize.base import WeightQuantizer
from lightning_compress.quantize.learned import LSQ
from lightning_compress.quantize.lowbit import Ternary
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.named import WEIGHTS
from lightning_compress.quantize.uniform import Observed, Uniform


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
    model, compressor = ready(Quantize(8, 8, activation_options={"momentum": 0.75}))
    quantizer: Observed = model[0].input_quantizer
    running = quantizer.range.clone()
    for scale in (0.5, 3.0):
        step(model, compressor, scale)
        x = scale * batches(1)[0][0]
        running = 0.75 * running + 0.25 * torch.stack([x.min(), x.max()])
        torch.testing.assert_close(quantizer.range, running)
        torch.testing.assert_close(quantizer.scale, (running[1] - running[0]) / 255)
        torch.testing.assert_close(quantizer.zero_point, (-running[0] / quantizer.scale).round())


def test_min_max_only_widens() -> None:
    model, compressor = ready(Quantize(8, 8, activation_options={"observer": "min_max"}))
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
    method = Quantize(*bits, weight_options={"symmetric": symmetric, "per_channel": per_channel})
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
    assert folded == {"bn1", "bn2", "bn3"}
    assert not [module for module in compact.model.modules() if isinstance(module, nn.BatchNorm2d)]
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
        axis = 0 if per_channel or name != "fc" else None  # a norm gives each channel a scale
        assert (stored.bits, stored.symmetric, stored.axis) == (bits[0], symmetric, axis)
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
    assert isinstance(model[0].input_quantizer, Observed)
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
    with pytest.raises(NoEffectError, match="inputs of unused have an empty range: never called"):
        step(model, compressor)


def test_no_alarm_before_the_start() -> None:
    method = Quantize(start=0.5)
    assert [method.settled(p) for p in (0.0, 0.49, 0.5)] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": None, "activation_bits": None}, "both null"),
        ({"weight_bits": 1}, "weight_bits: expected 2 to 8 bits for symmetric codes, got 1"),
        ({"weight_bits": 32}, "weight_bits: Uniform takes 1 to 8 bits, got 32; write null for float"),
        ({"weights": "ternary"}, "weight_bits: Ternary takes exactly 2 bits, got 8"),
        ({"activation_bits": Linear(first=8, last=0)}, "activation_bits: Observed takes 1 to 8 bits, got 0"),
        ({"ends": 9}, "ends: Uniform takes 1 to 8 bits, got 9"),
        ({"start": 1.0}, "start, freeze and freeze_batchnorm lie"),
        ({"start": 0.5, "freeze": 0.4}, "freeze not before start"),
        ({"freeze_batchnorm": 2.0}, "freeze_batchnorm=2.0"),
        ({"calibration_batches": 0}, "calibration_batches must be at least 1"),
        ({"activation_options": {"momentum": 1.0}}, r"momentum is the share of the old range, in \[0, 1\); got 1.0"),
        ({"activation_options": {"observer": "minmax"}}, "did you mean 'min_max'"),
        ({"activation_options": {"momentun": 0.5}}, "activations='observed' has no option 'momentun': did you mean"),
        ({"weights": "lqs"}, "Quantize: weights: no 'lqs' .it has apot, .*did you mean 'lsq'"),
        ({"weights": "seed_affine", "weight_options": {"axis": 0}}, "has no option 'axis': it has none"),
        ({"weights": "os.system"}, "weights='os.system' is no WeightQuantizer"),
        ({"activations": LSQ}, "activations=.*LSQ.* is no InputQuantizer"),
        ({"activations": "my.module.Quantizer"}, "expected the dotted path of a function, got 'my.module.Quantizer'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**options)


def test_no_layer_matched() -> None:
    with pytest.raises(ValueError, match=r"Quantize matched no layer: select='conv'"):
        Quantize(select="conv").attach(net(), None)


def small() -> Any:
    torch.manual_seed(0)
    return SmallConv()


def image(seed: int = 0) -> Tensor:
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def trained(*methods: Any, steps: int = 6) -> tuple[Any, Compressor]:
    """A small convolutional net after a few steps under `methods`."""
    compressor = Compressor(methods)
    model = compressor.attach(small(), image())
    compressor.prepare(model, [(image(), None)])
    compressor.horizon = steps
    groups = compressor.param_groups()
    own = {id(p) for group in groups for p in group["params"]}
    optimizer = torch.optim.SGD([{"params": [p for p in model.parameters() if id(p) not in own]}, *groups], lr=0.05)
    for step_number in range(steps):
        optimizer.zero_grad()
        model.train()(image(step_number)).square().mean().backward()
        optimizer.step()
        compressor.update(model)
    return model.eval(), compressor


def bits_of(model: Any) -> dict[str, tuple[int | None, int | None]]:
    found: dict[str, tuple[int | None, int | None]] = {}
    for name in ("conv1", "conv2", "conv3", "fc"):
        layer = model.get_submodule(name)
        weight = layer.parametrizations.weight[-1].bits if parametrize.is_parametrized(layer, "weight") else None
        found[name] = (weight, layer.input_quantizer.bits if hasattr(layer, "input_quantizer") else None)
    return found


@pytest.mark.parametrize("weights", [name for name in WEIGHTS if name not in ("uniform", "seed_affine", "lsq_plus")])
@pytest.mark.parametrize("activations", [None, "lsq", "lsq_plus", "pact", "dorefa"])
def test_any_pair_of_quantizers_trains_and_deploys_what_it_computed(weights: str, activations: str | None) -> None:
    weight_bits = {"ternary": 2, "ttq": 2, "binary": 1}.get(weights, 3)
    method = Quantize(weight_bits, 6 if activations else None, weights=weights, activations=activations or "observed")
    model, compressor = trained(Prune(0.5, every=1), method)
    compact = compressor.finalize(model, image())
    x = image(9)
    wanted = model(x).detach()
    off = (compact.model(x) - wanted).abs() / wanted.abs().max()
    assert float(off.median()) < (1e-5 if activations is None else 0.02)
    for name in ("conv1", "conv2", "conv3", "fc"):
        stored = compact.stored[f"{name}.weight"]
        assert stored.bits == weight_bits
        assert stored.mask is not None
        assert not stored.value[~stored.mask].any()
        live = model.get_submodule(name)
        assert not live.weight[~stored.mask].any()  # in training too
    stored = compact.stored["fc.weight"]  # no norm behind it
    assert torch.equal(stored.value, model.fc.weight.detach())


def test_a_mapping_gives_layers_bits_of_their_own() -> None:
    method = Quantize({"conv1": 8, r"conv\d": Linear(first=6, last=3), "": None}, {"fc": None, "": 5})
    model = method.attach(small(), image())
    assert bits_of(model) == {"conv1": (8, 5), "conv2": (6, 5), "conv3": (6, 5), "fc": (None, None)}
    method.update(model, 1.0)
    assert bits_of(model) == {"conv1": (8, 5), "conv2": (3, 5), "conv3": (3, 5), "fc": (None, None)}


def test_the_ends_have_bits_of_their_own() -> None:
    model: Any = Quantize(3, 4, weights="lsq", activations="lsq", ends=8).attach(small(), image())
    assert bits_of(model) == {"conv1": (8, 8), "conv2": (3, 4), "conv3": (3, 4), "fc": (8, 8)}
    assert isinstance(model.conv1.parametrizations.weight[0], LSQ)
    model = Quantize(2, None, weights="ternary", ends=8).attach(small(), image())
    assert bits_of(model) == {"conv1": (8, None), "conv2": (2, None), "conv3": (2, None), "fc": (8, None)}
    assert isinstance(model.conv1.parametrizations.weight[0], Uniform)
    assert isinstance(model.conv2.parametrizations.weight[0], Ternary)


def test_ends_that_are_left_out_are_an_error() -> None:
    with pytest.raises(ValueError, match="ends=8, but select and exclude leave out conv1 and fc"):
        Quantize(4, ends=8, exclude=["<first>", "<last>"]).attach(small(), image())
    model = Quantize(4, None, ends=8, exclude=["<first>"]).attach(small(), image())
    assert bits_of(model) == {"conv1": (None, None), "conv2": (4, None), "conv3": (4, None), "fc": (8, None)}


@final
class Halves(WeightQuantizer):
    """Somebody's own quantizer."""

    def __init__(self, bits: int, *, step: float = 0.5) -> None:
        super().__init__(bits, "symmetric")
        self.step = step

    def quantize(self, weight: Tensor) -> Tensor:
        return affine.round_to_scale(weight, torch.tensor(self.step))

    def encode(self, stored: Stored) -> Stored:
        return stored.coded((stored.value / self.step).round(), torch.tensor(self.step), bits=self.bits)


@pytest.mark.parametrize("weights", [Halves, "lightning_compress.Halves"])
def test_a_quantizer_of_ones_own(weights: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_compress, "Halves", Halves, raising=False)
    model, compressor = trained(Quantize(4, None, weights=weights, weight_options={"step": 0.25}))
    compact = compressor.finalize(model, image())
    assert torch.equal(compact.stored["fc.weight"].value, model.fc.weight.detach())
    assert set((compact.stored["fc.weight"].value * 4).flatten().tolist()) <= set(range(-8, 9))


def test_what_is_learned_is_in_a_group_of_its_own() -> None:
    method = Quantize(4, 4, weights="lsq", activations="pact", lr=0.3, decay=0.1)
    model = method.attach(small(), image())
    (group,) = method.param_groups()
    named = {id(p): name for name, p in model.named_parameters()}
    assert sorted(named[id(p)].rpartition(".")[2] for p in group["params"]) == ["alpha"] * 4 + ["scale"] * 4
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)
    method = Quantize(4, 4, activations="pact", decay=None)
    method.attach(small(), image())
    assert method.param_groups()[0].keys() == {"params"}
    method = Quantize(4, 4)
    method.attach(small(), image())
    assert method.param_groups() == []


def test_steps_start_from_what_other_methods_made_of_the_weights() -> None:
    stack = [Prune(0.8, every=1), Quantize(4, None, weights="lsq")]
    compressor = Compressor(stack)
    model: Any = compressor.attach(small(), image())
    before = float(model.conv3.parametrizations.weight[-1].scale.detach())
    compressor.prepare(model, [])  # prunes, then starts the steps
    after = float(model.conv3.parametrizations.weight[-1].scale.detach())
    pruned = model.conv3.parametrizations.weight[0](model.conv3.parametrizations.weight.original).detach()
    assert after == pytest.approx(float(2 * pruned[pruned != 0].abs().mean() / 7**0.5), rel=1e-5)
    assert after > 1.5 * before


def test_a_late_start_starts_from_the_weights_and_inputs_of_its_moment() -> None:
    method = Quantize(4, 4, weights="lsq", activations="lsq", start=0.5)
    compressor = Compressor([method])
    model: Any = compressor.attach(small(), image())
    compressor.prepare(model, [(image(), None)])
    compressor.horizon = 10
    layer = model.conv2
    for number in range(1, 9):
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(1.2)
        model.train()(image(number))
        weight = layer.parametrizations.weight.original.detach().clone()
        running = layer.input_quantizer.range.clone()
        compressor.update(model)
        active = number >= 5
        assert layer.input_quantizer.active == layer.parametrizations.weight[0].active == active
        assert torch.equal(running, layer.input_quantizer.range) == active
        if number == 5:
            torch.testing.assert_close(
                layer.parametrizations.weight[0].scale.detach(), 2 * weight.abs().mean() / 7**0.5
            )
            wanted = 2 * layer.input_quantizer.range[2] / 15**0.5
            torch.testing.assert_close(layer.input_quantizer.scale.detach(), wanted)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(torch.optim.SGD, momentum=0.9)])
def test_what_an_optimizer_gathered_before_values_were_given_anew_is_void(optimizer: Any) -> None:
    method = Quantize(Steps(values=[8, 4], at=[0.8]), 8, weights="lsq", activations="pact", start=0.5)
    compressor = Compressor([method])
    model: Any = compressor.attach(small(), image())
    compressor.prepare(model, [(image(), None)])
    compressor.horizon = 10
    made = optimizer(model.parameters(), lr=1e-3)
    quantizers = (model.conv2.parametrizations.weight[0].scale, model.conv2.input_quantizer.alpha)
    anew: dict[int, list[bool]] = {}
    for number in range(1, 11):
        made.zero_grad()
        model.train()(image(number)).square().mean().backward()
        made.step()
        states = [made.state[parameter] for parameter in quantizers]
        compressor.update(model, [made])
        anew[number] = [made.state.get(p) is not state for p, state in zip(quantizers, states, strict=True)]
        assert model.conv2.parametrizations.weight.original in made.state
    # Both begin at the fifth step; at the eighth the bits of weights change, and the steps with them.
    assert {number: which for number, which in anew.items() if any(which)} == {5: [True, True], 8: [True, False]}


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_learned_state_goes_through_a_checkpoint(start: float) -> None:
    def method() -> Quantize:
        return Quantize(
            Steps(values=[8, 3], at=[0.3]), 4, weights="lsq", activations="lsq_plus", start=start, freeze_batchnorm=0.7
        )

    model, first = trained(method(), steps=4)
    first.horizon = 10
    again, second = small(), Compressor([method()])
    second.attach(again, image())
    again.load_state_dict(model.state_dict())
    second.load_state_dict(first.state_dict())
    for number in range(5):
        for net, compressor in ((model, first), (again, second)):
            net.train()(image(number))
            compressor.update(net)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert torch.equal(model.eval()(image()), again.eval()(image()))
    assert not again.bn1.training


def test_norms_freeze_when_they_are_told() -> None:
    method = Quantize(8, None, freeze_batchnorm=0.5)
    compressor = Compressor([method])
    model: Any = compressor.attach(small(), image())
    compressor.horizon = 10
    for number in range(1, 9):
        before = model.bn2.running_mean.clone()
        model.train()(image(number))
        assert torch.equal(before, model.bn2.running_mean) == (number > 5)
        compressor.update(model)
    compact = compressor.finalize(model, image())
    assert not any(module._forward_pre_hooks for module in compact.model.modules())
    torch.testing.assert_close(compact.model(image()), model.eval()(image()), atol=1e-5, rtol=1e-5)


def test_groups_of_input_channels_deploy() -> None:
    model, compressor = trained(Quantize(4, None, weight_options={"group_size": 8}, exclude=["<first>"]))
    compact = compressor.finalize(model, image())
    stored = compact.stored["conv2.weight"]
    assert stored.groups is not None
    assert stored.groups.tolist() == [8, 8]
    torch.testing.assert_close(compact.model(image()), model(image()), atol=1e-5, rtol=1e-5)
