from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.quantize import adaround, correction, equalize, seen
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.seen import Seen
from tests.contract import cases


def net() -> Any:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def batches() -> list[tuple[Tensor]]:
    return [(torch.randn(64, 4) * (i + 1),) for i in range(3)]


def test_a_chosen_range_is_what_the_quantizer_starts_from() -> None:
    asked: list[tuple[Seen, int]] = []

    def choose(shows: Seen, top: int) -> tuple[float, float]:
        asked.append((shows, top))
        return -0.25, 0.75

    model, shown = net(), batches()
    reference = [torch.cat([x for (x,) in shown]), torch.cat([model[:2](x) for (x,) in shown]).detach()]
    compressor = Compressor([Quantize(None, 4, calibration=choose)])
    compressor.attach(model, shown[0][0])
    compressor.prepare(model, shown, trains=False)
    assert [top for _, top in asked] == [15, 15]
    for (shows, _), x in zip(asked, reference, strict=True):
        assert (shows.low, shows.high) == pytest.approx((min(0.0, float(x.min())), float(x.max())))
        want = torch.histc(x, 2048, shows.low, shows.high)
        assert int(shows.counts.sum()) == x.numel()
        assert float((shows.counts - want).abs().sum()) <= 1e-3 * x.numel()
        assert shows.batches.shape == (3, 2)
        assert float(shows.batches[:, 1].max()) == pytest.approx(float(x.max()))
    for layer in (model[0], model[2]):
        assert layer.input_quantizer.range.tolist() == [-0.25, 0.75]
        assert float(layer.input_quantizer.scale) == pytest.approx(1.0 / 15)


@pytest.mark.parametrize("name", ["min_max", "moving_average", "percentile", "mse", "entropy"])
def test_every_calibration_by_name(name: str) -> None:
    model, shown = net(), batches()
    compressor = Compressor([Quantize(None, 8, calibration=name)])
    compressor.attach(model, shown[0][0])
    compressor.prepare(model, shown, trains=False)
    x = torch.cat([x for (x,) in shown])
    low, high = model[0].input_quantizer.range.tolist()
    if name == "min_max":
        assert (low, high) == (float(x.min()), float(x.max()))
    assert 0.2 * float(x.max()) < high <= float(x.max()) + 1e-5
    assert 0.2 * float(x.min()) > low >= float(x.min()) - 1e-5


def test_an_input_that_is_always_zero_keeps_its_empty_range() -> None:
    model = net()
    method = Quantize(None, 8, calibration="mse")
    method.attach(model, torch.ones(2, 4))
    method.prepare(model, [(torch.zeros(4, 4),)])
    assert model[0].input_quantizer.range.tolist() == [0.0, 0.0]


def test_equalising_is_done_before_there_are_quantizers() -> None:
    plain, model = net(), net()
    model.load_state_dict(plain.state_dict())
    equalize.equalize(plain, torch.ones(2, 4))
    Quantize(8, 8, equalize=True).attach(model, torch.ones(2, 4))
    assert torch.equal(model[0].parametrizations.weight.original, plain[0].weight)


def test_a_resumed_run_goes_on_bit_by_bit_and_learns_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.CASES["quantize-post-training"]
    whole = cases.fit(cases.module(case), cases.trainer(tmp_path / "whole", limit_train_batches=2))
    for module, name in ((adaround, "adaround"), (correction, "correct"), (seen, "ranges")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was prepared again"))
    resumed = cases.fit(
        cases.module(case, seed=5),
        cases.trainer(tmp_path / "resumed", limit_train_batches=2),
        cases.checkpoint(tmp_path / "whole", epoch=1),
    )
    want, found = (cases.load(cases.checkpoint(tmp_path / name)) for name in ("whole", "resumed"))
    assert cases.differences(want, found) == []
    assert torch.equal(cases.outputs(whole.model), cases.outputs(resumed.model))
