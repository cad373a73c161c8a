import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F

from lightning_compress.core import surgery
from lightning_compress.core.schedule import Linear
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.prune import scores, slopes
from lightning_compress.prune.evidence import Evidence, asked
from lightning_compress.prune.method import Prune
from lightning_compress.prune.patterns import Pattern
from lightning_compress.quantize.method import Quantize


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)
    )


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 1, 4, 4, generator=draw), torch.randint(3, (6,), generator=draw)) for _ in range(count)]


def gathered(score: Callable[..., Tensor], model: Any, method: Prune) -> dict[str, dict[str, Tensor]]:
    assert method._pattern is not None
    evidence = Evidence(score, F.cross_entropy)
    evidence.attach(method._pattern)
    for batch in batches():
        evidence.show(*batch)
    return evidence.gather(model, method._pattern, seed=0)


def masked() -> tuple[Any, Prune]:
    method = Prune(0.5, every=1)
    model = method.attach(net(), None)
    method.update(model, 1.0)
    return model, method


def plain_losses(model: Any) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    """The mean loss over the batches as a function of the two masked weights, in an ordinary copy."""
    twin = surgery.plain(model)
    for norm in [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    weights = {name: twin.get_parameter(f"{name}.weight").detach().clone().requires_grad_() for name in ("0", "5")}
    twin.eval()

    def loss(*values: Tensor) -> Tensor:
        state = {f"{name}.weight": value for name, value in zip(weights, values, strict=True)}
        found = [F.cross_entropy(functional_call(twin, state, (x,)), y) for x, y in batches()]
        return torch.stack(found).mean()

    return weights, loss


def test_gradients_are_autograds_on_a_plain_copy_where_it_is_masked_too() -> None:
    model, method = masked()
    found = gathered(scores.snip, model, method)["gradient"]
    weights, loss = plain_losses(model)
    for name, gradient in zip(weights, torch.autograd.grad(loss(*weights.values()), [*weights.values()]), strict=True):
        torch.testing.assert_close(found[name], gradient.reshape(-1, 1))
        assert found[name][weights[name].reshape(-1, 1) == 0].abs().min() > 0


def test_change_of_single_weights_is_weight_by_gradient() -> None:
    model, method = masked()
    change = gathered(scores.taylor, model, method)["squared_change"]
    squares = gathered(scores.fisher, model, method)["squared_gradient"]
    assert method._pattern is not None
    for name, weight in method._pattern.view().items():
        torch.testing.assert_close(change[name], weight.square() * squares[name])


def test_change_of_a_row_is_one_sum_for_each_batch() -> None:
    method = Prune(0.3, pattern="row")
    model = method.attach(net(), None)
    found = gathered(scores.taylor, model, method)["squared_change"]
    weights, _ = plain_losses(model)
    expected = torch.zeros(3)
    for batch in batches():
        evidence = Evidence(scores.snip, F.cross_entropy)
        evidence.show(*batch)
        assert method._pattern is not None
        gradient = evidence.gather(model, method._pattern, 0)["gradient"]["5"]
        expected += (weights["5"] * gradient).sum(1).square() / 2
    torch.testing.assert_close(found["5"], expected.unsqueeze(1))


@pytest.mark.parametrize("pattern", ["channel", "block"])
def test_change_of_a_unit_is_the_slope_as_all_of_it_fades(pattern: str) -> None:
    """By a central difference in float64; in front of a batch norm the weights alone would give zero."""
    method = Prune(0.3, pattern=pattern)
    inputs, targets = torch.randn(6, 3, 8, 8).double(), torch.arange(6)
    model = method.attach(ResNetCIFAR(14, width=0.25, num_classes=6), torch.randn(2, 3, 8, 8)).double()
    gates = method._pattern.gates()  # type: ignore[union-attr]
    evidence = Evidence(scores.taylor, F.cross_entropy)
    evidence.show(inputs, targets)
    assert method._pattern is not None
    found = evidence.gather(model, method._pattern, seed=0)["squared_change"]
    step, (name, masks) = 1e-5, next(iter(gates.items()))

    def loss(unit: int, open_by: float) -> float:
        for mask, places, units in masks:
            mask.mask.view(-1)[places[units == unit]] = open_by
        value: float = F.cross_entropy(model(inputs), targets).item()
        for mask, _, _ in masks:
            mask.mask.fill_(1.0)
        return value

    for unit in range(len(found[name])):
        slope = (loss(unit, 1 + step) - loss(unit, 1 - step)) / (2 * step)
        assert found[name][unit].item() == pytest.approx(slope**2, rel=1e-4, abs=1e-10)
    assert found[name].max() > 1e-6


def test_hessian_and_its_product_with_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slopes, "_PROBES", 200)
    model, method = masked()
    weights, loss = plain_losses(model)
    values = [*weights.values()]
    gradient = torch.autograd.grad(loss(*values), values)
    whole = hessian(loss, tuple(values))  # type: ignore[no-untyped-call]
    product = gathered(scores.grasp, model, method)["hessian_gradient"]
    diagonal = gathered(scores.obd, model, method)["hessian"]
    for row, (name, value) in enumerate(weights.items()):
        parts = [whole[row][i].reshape(value.numel(), -1) @ gradient[i].flatten() for i in range(2)]
        torch.testing.assert_close(product[name][:, 0], parts[0] + parts[1], atol=1e-6, rtol=1e-3)
        exact = whole[row][row].reshape(value.numel(), -1).diagonal()
        # An entry's error has the others of its row as its standard deviation, over the root of 400 probes.
        others = sum(part.reshape(value.numel(), -1).square().sum(1) for part in whole[row]) - exact.square()
        assert ((diagonal[name][:, 0] - exact).abs() <= 5 * (others / 400).sqrt()).all()
        assert diagonal[name].std() > 0


def test_squares_are_those_of_each_batch() -> None:
    model, method = masked()
    squares = gathered(scores.fisher, model, method)["squared_gradient"]["5"]
    singles = []
    for batch in batches():
        evidence = Evidence(scores.snip, F.cross_entropy)
        evidence.show(*batch)
        assert method._pattern is not None
        singles.append(evidence.gather(model, method._pattern, 0)["gradient"]["5"])
    torch.testing.assert_close(squares, (singles[0] ** 2 + singles[1] ** 2) / 2)
    assert not torch.allclose(singles[0], singles[1])


@pytest.mark.parametrize("score", [scores.snip, scores.grasp, scores.obd])
def test_gathering_leaves_no_trace(score: Any) -> None:
    model, method = masked()
    Quantize(1, 4, weights="binary").attach(model, torch.randn(2, 1, 4, 4))  # puts the masks on once more, after itself
    assert len(surgery.masks_on(model[0], "weight")) < len(model[0].parametrizations.weight) - 1
    model.train()
    model[1].momentum = 0.5
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gathered(score, model, method)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert model[1].track_running_stats
    assert all(parameter.grad is None for parameter in model.parameters())


def test_autocast_changes_nothing() -> None:
    model, method = masked()
    wanted = gathered(scores.snip, model, method)["gradient"]
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = gathered(scores.snip, model, method)["gradient"]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_movement_is_the_sum_of_what_training_asked_for() -> None:
    method = Prune(Linear(last=0.5, begin=0.5), score="movement", every=1)
    model: Any = method.attach(net(), None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = 0.0
    for inputs, targets in batches(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        total = total - model[5].weight.detach() * model[5].parametrizations.weight.original.grad
        method.evidence.show(inputs, targets)
        optimizer.step()
        method.update(model, 0.1)
    assert method._pattern is not None
    found = method.evidence.gather(model, method._pattern, 0)["movement"]["5"]
    torch.testing.assert_close(found, torch.as_tensor(total).reshape(-1, 1))
    assert [key for key in method.state_dict() if "movement" in key] == ["evidence.movement0", "evidence.movement1"]


def test_features_are_what_the_next_layer_takes_in() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    method = Prune(0.3, pattern="channel", score="apoz")
    method.attach(model, torch.randn(2, 1, 4, 4))
    found = gathered(scores.apoz, model, method)["features"]
    inputs = torch.cat([x for x, _ in batches()])
    model.eval()
    torch.testing.assert_close(found["0"], model[:2](inputs).movedim(1, 0))
    flat = model[:5](inputs).movedim(1, 0)  # three channels, a row of four numbers each
    torch.testing.assert_close(found["2"], flat.reshape(3, 12, 1, 4))


def test_norms_are_the_scales() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.1, 1.0]))
    method = Prune(0.5, pattern="channel", score="batchnorm", every=1)
    method.attach(model, torch.randn(2, 1, 4, 4))
    assert gathered(scores.batchnorm, model, method)["norm"]["0"].tolist() == [
        [0.5],
        [-2.0],
        [pytest.approx(0.1)],
        [1.0],
    ]
    method.update(model, 1.0)
    assert model[1].weight.tolist() == [0.0, -2.0, 0.0, 1.0]


def test_what_is_asked_for_is_in_the_signature() -> None:
    assert asked(lambda weight, gradient, movement=None, power=2: weight) == {"gradient", "movement"}
    assert asked(lambda weight, **rest: weight) == frozenset()
    with pytest.raises(ValueError, match=r"asks for 'gradients'; there is gradient, squared_gradient"):
        asked(lambda weight, gradients: weight)


@pytest.mark.parametrize(("score", "kind"), [("hrank", "features"), ("batchnorm", "norm")])
def test_what_only_channels_have_is_refused_elsewhere(score: str, kind: str) -> None:
    with pytest.raises(
        ValueError, match=f"{score!r} asks for {kind!r}, which only channels have; write pattern=channel"
    ):
        Prune(0.5, score=score, pattern="row").attach(net(), None)


def test_channels_without_a_norm_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"no batch norm follows '0'; write exclude=\['\^0\$'\]"):
        Prune(0.5, score="batchnorm", pattern="channel").attach(model, torch.randn(2, 1, 4, 4))


def test_no_data_is_an_error() -> None:
    method = Prune(0.5, score="snip")
    model = method.attach(net(), None)
    method.prepare(model, [])
    with pytest.raises(ValueError, match="'snip' needs data and has seen none"):
        method.update(model, 0.0)


def test_nothing_is_kept_when_nothing_is_asked_for() -> None:
    evidence = Evidence(scores.magnitude, F.cross_entropy)
    evidence.show(*batches()[0])
    pattern: Pattern = Prune(0.5)._make(net(), None, {})
    assert evidence._shown == evidence._held == []
    assert evidence.gather(nn.Identity(), pattern, 0) == {}
