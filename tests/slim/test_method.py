import logging
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.slim.method import Slim

KINDS = ["separable", "grouped", "bottleneck"]


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False), nn.ReLU())


def batches() -> list[tuple[torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.rand(4, 8, 9, 9, generator=draw),) for _ in range(3)]


def error(model: nn.Module) -> float:
    (inputs,) = batches()[0]
    with torch.no_grad():
        return float((model(inputs) - net()(inputs)).square().mean() / net()(inputs).var())


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_to_data_comes_nearer_than_the_weights_alone(kind: str) -> None:
    errors = {}
    for number in (0, 3):
        methods, model = Compressor([Slim(kind, batches=number)]), net()
        model = methods.attach(model, batches()[0][0])
        methods.prepare(model, batches())
        errors[number] = error(model)
    assert errors[3] < 0.7 * errors[0]
    assert errors[0] < 2.0


def test_fitting_reaches_below_masks_and_quantizers() -> None:
    found: list[Any] = []
    for others in ([], [Prune(0.5), Quantize(8, 8)]):
        methods: Any = Compressor([Slim("grouped"), *others])
        found.append(methods.attach(net(), batches()[0][0]))
        methods.methods[0].prepare(found[-1], batches())
    plain: Any = Compressor([Slim("grouped")]).attach(net(), batches()[0][0])
    below = found[1][0][1].parametrizations.weight.original
    assert torch.equal(below, found[0][0][1].weight)
    assert not torch.equal(below, plain[0][1].weight)


def test_kinds_by_pattern_and_their_edits() -> None:
    method, model = Slim({"0": "bottleneck", "2": "grouped"}, ratio=0.25, groups=4), net()
    compressor = Compressor([method])
    compressor.attach(model, batches()[0][0])
    found = compressor.finalize(model, batches()[0][0])
    assert found.edits == [
        {"kind": "factor", "layer": "0", "form": "tucker", "ranks": [2, 4]},
        {"kind": "factor", "layer": "2", "form": "grouped", "ranks": [4]},
    ]


def test_convolutions_without_a_lighter_form_stay_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
    with caplog.at_level(logging.WARNING):
        Slim("grouped").attach(model, torch.zeros(1, 1, 9, 9))
    assert "Slim leaves as they are: 0 (2 groups do not divide its channels), 1 (it is 1x1)" in caplog.text
    with pytest.raises(ValueError, match=r"Slim would change nothing.*: 0 \(separable saves nothing\)"):
        Slim().attach(nn.Sequential(nn.Conv2d(8, 1, 3)), torch.zeros(1, 8, 9, 9))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "separabel"}, "kind must be one of separable, grouped, bottleneck; got 'separabel'"),
        ({"groups": 1}, "groups count from 2 up"),
        ({"ratio": 0.0}, r"ratio lies in \(0, 1\]"),
        ({"batches": -1}, "batches count from 0 up"),
        ({"kind": {"conv9": "grouped"}}, "pattern 'conv9' counts for no layer"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Slim(**options).attach(net(), batches()[0][0])
