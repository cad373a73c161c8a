import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.prune.method import Prune
from lightning_compress.quantize import adaround
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.uniform import Uniform
from lightning_compress.share.method import Share


def correlated(number: int, size: int) -> Tensor:
    """Inputs that go together, so that rounding errors of one weight can undo those of another."""
    return (torch.randn(number, 3) @ torch.randn(3, size) + 0.1 * torch.randn(number, size)).relu()


def net() -> Any:
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 8))


def test_the_rectified_sigmoid_by_hand() -> None:
    for v in (-3.0, -1.0, 0.0, 0.3, 4.0):
        want = min(1.0, max(0.0, 1.2 / (1.0 + math.exp(-v)) - 0.1))
        assert float(adaround.rectified(torch.tensor(v))) == pytest.approx(want, abs=1e-6)
    shares = torch.linspace(0.0, 0.999, 50)
    torch.testing.assert_close(adaround.rectified(adaround.unrectified(shares)), shares, atol=1e-6, rtol=1e-5)


def test_the_regulariser_by_hand() -> None:
    h = torch.tensor([0.0, 0.1, 0.5, 0.9])
    want = 0.0 + (1 - 0.8**4) + 1.0 + (1 - 0.8**4)
    assert float(adaround.undecided(h, 4.0)) == pytest.approx(want, rel=1e-5)


def test_beta_falls_from_twenty_to_two() -> None:
    found = [adaround.beta_at(step, 100) for step in range(101)]
    assert found[:20] == [None] * 20
    assert (found[20], found[60], found[100]) == (20.0, 11.0, 2.0)


def _learned(bits: int, steps: int) -> tuple[Any, Any, Tensor, Tensor, Tensor]:
    layer, quantizer = nn.Linear(20, 6), Uniform(bits)
    x = correlated(128, 20)
    targets = layer(x).detach()
    return layer, quantizer, adaround.learn(layer, quantizer, [x], [targets], steps), x, targets


@pytest.mark.parametrize("bits", [3, 4])
def test_it_beats_the_nearest_codes(bits: int) -> None:
    layer, quantizer, found, x, targets = _learned(bits, 400)
    with torch.no_grad():
        nearest, learnt = ((layer(x) + x @ (w - layer.weight).T - targets).square().mean() for w in (
            quantizer(layer.weight), quantizer(found)
        ))  # fmt: skip
    assert learnt < 0.6 * nearest


def test_each_weight_is_at_the_code_below_or_above_it_and_its_quantizer_finds_it_there() -> None:
    layer, quantizer, found, *_ = _learned(4, 100)
    scale, _ = quantizer.qparams(layer.weight)
    torch.testing.assert_close(quantizer.qparams(found)[0], scale, rtol=0.0, atol=0.0)
    with torch.no_grad():
        codes = quantizer(found) / scale[:, None]
    torch.testing.assert_close(codes, codes.round(), rtol=0.0, atol=1e-5)
    place = layer.weight / scale[:, None]
    assert bool(((codes.round() == place.floor()) | (codes.round() == place.ceil()) | (place.abs() > 6.999)).all())
    assert not torch.equal(codes.round(), place.round())
    assert torch.equal(found[place.abs() > 6.9999], layer.weight[place.abs() > 6.9999])


def test_the_nearest_codes_win_where_learning_is_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaround, "rectified", lambda v: torch.sigmoid(9.0 - v))  # it learns the wrong way around
    layer, quantizer, found, *_ = _learned(4, 30)
    torch.testing.assert_close(quantizer(found), quantizer(layer.weight), rtol=1e-5, atol=1e-6)


def _prepared(steps: int, *before: Any, **options: Any) -> tuple[Any, Compressor, list[Any]]:
    torch.manual_seed(0)
    model, batches = net(), [(correlated(64, 20),) for _ in range(2)]
    compressor = Compressor([*before, Quantize(3, 8, adaround=steps, **options)])
    model = compressor.attach(model, batches[0][0])
    compressor.prepare(model, batches, trains=False)
    return model, compressor, batches


def test_a_network_comes_nearer_to_the_float_one() -> None:
    torch.manual_seed(0)
    float_net = net()
    errors = []
    for steps in (0, 300):
        model, compressor, batches = _prepared(steps)
        deployed = compressor.finalize(model, batches[0][0]).model
        with torch.no_grad():
            errors.append(sum(float((deployed(x) - float_net(x)).square().mean()) for (x,) in batches))
    assert errors[1] < 0.6 * errors[0]


def test_masked_weights_stay_zero() -> None:
    model, compressor, batches = _prepared(100, Prune(0.5))
    stored = compressor.finalize(model, batches[0][0]).stored["0.weight"]
    assert stored.mask is not None
    assert int((~stored.mask).sum()) == 160
    assert int((stored.value == 0).sum()) >= 160
    assert stored.value[~stored.mask].count_nonzero() == 0


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (lambda: [Quantize(4, 8, weights="lsq", adaround=10)], "evenly spaced symmetric codes"),
        (lambda: [Quantize(4, 8, weight_options={"symmetric": False}, adaround=10)], "evenly spaced symmetric codes"),
        (lambda: [Share(clusters=4), Quantize(4, 8, adaround=10)], "weights of their own"),
        (lambda: [Quantize(4, 8, adaround=-1)], "number of steps"),
        (lambda: [Quantize(4, 8, adaround=10, start=0.5)], "need weight_bits and start=0"),
        (lambda: [Quantize(None, 8, correct_bias=True)], "need weight_bits and start=0"),
        (lambda: [Quantize(4, 8, calibration="entropi")], "did you mean 'entropy'"),
    ],
)
def test_what_cannot_be_is_refused(methods: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Compressor(methods()).attach(net(), torch.ones(2, 20))
