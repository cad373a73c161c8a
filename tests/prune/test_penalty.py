from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.schedule import Linear, OneShot
from lightning_compress.prune.method import Prune
from lightning_compress.prune.penalty import GroupLasso, Penalty, Proximal, Slimming

EXAMPLE = torch.zeros(2, 2, 4, 4)


def net() -> Any:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def attached(model: Any, penalty: Penalty, **options: Any) -> Compressor:
    compressor = Compressor([Prune(OneShot(last=0.5, at=0.5), penalty=penalty, **options)])
    compressor.attach(model, EXAMPLE)
    compressor.horizon = 10
    compressor.steps = 4
    return compressor


def term(compressor: Compressor, model: Any) -> dict[str, torch.Tensor]:
    return compressor.loss(compressor.step((EXAMPLE, EXAMPLE), EXAMPLE, torch.zeros(()), model))


@pytest.mark.parametrize("pattern", ["channel", "row", "unstructured"])
def test_group_lasso_is_the_norms_of_the_units(pattern: str) -> None:
    model, plain = net(), net()
    plain.load_state_dict(model.state_dict())
    compressor = attached(model, GroupLasso(Linear(last=0.5)), pattern=pattern)  # 0.2 at step 4 of 10
    found = term(compressor, model)["prune_penalty"]
    groups = {"channel": [plain[0]], "row": [plain[0], plain[4]], "unstructured": [plain[0], plain[4]]}[pattern]
    if pattern == "unstructured":
        expected = 0.2 * sum(layer.weight.abs().sum() for layer in groups)
    else:
        expected = 0.2 * sum(
            layer.weight[0].numel() ** 0.5 * layer.weight.flatten(1).square().sum(1).sqrt().sum() for layer in groups
        )
    torch.testing.assert_close(found, expected)
    found.backward()  # type: ignore[no-untyped-call]
    expected.backward()
    for mine, own in ((model[0], plain[0]), (model[4], plain[4])):
        slope = own.weight.grad if own in groups else None
        latent = mine.parametrizations.weight.original if "parametrizations" in mine._modules else mine.weight
        assert latent.grad is None if slope is None else torch.allclose(latent.grad, slope, rtol=1e-5)


def test_slimming_is_the_l1_norm_of_the_scales() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-2.0, 1.0, 0.5, 3.0]))
    compressor = attached(model, Slimming(0.1), pattern="channel", score="batchnorm")
    found = term(compressor, model)["prune_penalty"]
    assert float(found.detach()) == pytest.approx(0.65)
    found.backward()  # type: ignore[no-untyped-call]
    assert model[1].parametrizations.weight.original.grad.tolist() == pytest.approx([-0.1, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("pattern", ["channel", "2x3", "unstructured"])
def test_the_proximal_step_is_block_soft_thresholding(pattern: str) -> None:
    model = net()
    weights = [model[0].weight.detach().clone(), model[4].weight.detach().clone()]
    strength = {"channel": 0.15, "2x3": 0.12, "unstructured": 0.1}[pattern]
    compressor = attached(model, Proximal(strength), pattern=pattern)
    compressor.steps = 0
    compressor.update(model)
    rows, columns = {"channel": (1, 18), "2x3": (2, 3), "unstructured": (1, 1)}[pattern]
    zeros = 0
    for before, after in zip(weights, (model[0].weight, model[4].weight), strict=True):
        if pattern == "channel" and before.dim() == 2:
            assert torch.equal(before, after)
            continue
        old, new = before.flatten(1), after.flatten(1)
        for top in range(0, len(old), rows):
            for left in range(0, old.shape[1], columns):
                block = old[top : top + rows, left : left + columns]
                # A block at the end is smaller, and counts as a whole one.
                threshold = strength * (rows * columns) ** 0.5
                expected = block * max(0.0, 1.0 - threshold / float(block.norm()))
                got = new[top : top + rows, left : left + columns]
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
                zeros += int((got == 0).all())
    assert 0 < zeros < sum(weight.numel() for weight in weights)


def test_a_strength_that_ends_costs_nothing_after() -> None:
    model = net()
    compressor = attached(model, GroupLasso(OneShot(first=0.1, last=0.0, at=0.5)))
    assert list(term(compressor, model)) == ["prune_penalty"]
    compressor.steps = 5
    assert term(compressor, model) == {}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Prune(0.5, penalty=Slimming(0.1)), "scales of channels' batch norms; write pattern=channel"),
        (lambda: Prune(0.5, penalty=GroupLasso(0.0)), "positive at some time and never negative; got 0 to 0"),
        (lambda: Prune(0.5, penalty=Proximal(Linear(first=-1.0))), "never negative; got -1 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().attach(net(), EXAMPLE)


def test_slimming_needs_batch_norms() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="no batch norm follows '0'"):
        Prune(0.5, pattern="channel", penalty=Slimming(0.1)).attach(model, torch.zeros(2, 4))
