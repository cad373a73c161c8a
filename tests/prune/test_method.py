from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.schedule import Linear, OneShot, Polynomial
from lightning_compress.prune.method import Prune


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5))


def zeros(model: Any) -> list[int]:
    return [int((model[i].weight == 0).sum()) for i in (0, 2)]


def test_removes_the_smallest_and_keeps_the_rest() -> None:
    model = net()
    before = model[0].weight.detach().clone()
    method = Prune(0.75, every=1)
    method.attach(model, None)
    assert zeros(model) == [0, 0]
    assert method.update(model, 1.0) == {"prune/amount": 0.75}
    assert zeros(model) == [90, 75]
    kept = before.abs() > before.abs().flatten().kthvalue(90).values
    assert torch.equal(model[0].weight, before * kept)


def test_gradual_ramp_moves_every_few_steps_and_arrives() -> None:
    model, seen = net(), []
    ramp = Polynomial(first=0.0, last=0.9, begin=0.2, end=0.8)
    method = Prune(ramp, every=3)
    method.attach(model, None)
    for step in range(1, 21):
        logged = method.update(model, step / 20)
        if logged:
            seen.append((step, logged["prune/amount"]))
        assert zeros(model)[0] == (round(120 * seen[-1][1]) if seen else 0)
    # Multiples of 3 inside the window (4, 16], and the moment it arrives.
    assert seen == [(step, ramp(step / 20)) for step in (6, 9, 12, 15, 16)]
    assert zeros(model) == [108, 90]


def test_a_pruned_weight_never_comes_back() -> None:
    model = net()
    method = Prune(Linear(first=0.1, last=0.8), every=1)
    method.attach(model, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=1e-3)
    gone = torch.zeros(20, 6, dtype=torch.bool)
    x, y = torch.randn(32, 6), torch.randn(32, 5)
    for step in range(1, 31):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        method.update(model, step / 30)
        now = model[0].weight == 0
        assert (now | ~gone).all()
        gone = now
    assert zeros(model) == [96, 80]


def test_exact_count_when_most_weights_are_zero_already() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(torch.arange(120).view(20, 6) < 10)
    method = Prune(Linear(first=0.0, last=0.5), every=1)
    method.attach(model, None)
    stack = model[0].parametrizations.weight
    for step in range(1, 6):
        method.update(model, step / 5)
        assert int((stack[0].mask == 0).sum()) == 12 * step
        assert stack[0].mask.flatten()[:10].all()


def test_a_falling_schedule_gives_nothing_back() -> None:
    model = net()
    method = Prune(Linear(first=0.8, last=0.2), every=1)
    method.attach(model, None)
    for progress in (0.0, 0.5, 1.0):
        method.update(model, progress)
    assert zeros(model)[0] == 96


def test_a_score_that_prefers_small_weights_cannot_revive_one() -> None:
    def smallest(weight: Tensor) -> Tensor:
        return 10.0 - weight.abs().sum(1)

    model = net()
    method = Prune(Linear(first=0.0, last=0.8), every=1, score=smallest)
    method.attach(model, None)
    for step in range(1, 5):
        method.update(model, step / 4)
        assert zeros(model) == [24 * step, 20 * step]


def test_threshold_of_han_by_hand() -> None:
    model = net()
    before = model[0].weight.detach().clone()
    method = Prune(threshold=0.7, every=1)
    method.attach(model, None)
    method.update(model, 0.1)
    expected = before.abs() >= 0.7 * before.square().mean().sqrt()
    assert 0 < int(expected.sum()) < 120
    assert torch.equal(model[0].weight != 0, expected)
    method.update(model, 0.2)  # the same amount does not prune again
    assert torch.equal(model[0].weight != 0, expected)


def test_overall_allocation_and_exclude() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(0.001)
    method = Prune(0.4, every=1, allocation="overall")
    method.attach(model, None)
    method.update(model, 1.0)
    assert zeros(model) == [0, 88]  # 0.4 of 220
    model = net()
    method = Prune(0.5, every=1, exclude=["<last>"])
    method.attach(model, None)
    method.update(model, 1.0)
    assert zeros(model) == [60, 0]


def test_state_goes_through_a_checkpoint() -> None:
    def build() -> tuple[Any, Compressor]:
        model, compressor = net(), Compressor([Prune(Linear(last=0.8), every=2)])
        compressor.attach(model, None)
        compressor.horizon = 8
        return model, compressor

    (a, first), (b, second) = build(), build()
    for _ in range(3):
        first.update(a)
    b.load_state_dict(a.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        assert first.update(a) == second.update(b)
        assert zeros(a) == zeros(b)
    assert zeros(a) == [96, 80]


def test_finalize_stores_the_mask_and_plain_zeros() -> None:
    model, compressor = net(), Compressor([Prune(0.5, every=1)])
    compressor.attach(model, None)
    compressor.update(model)
    compact = compressor.finalize(model, None)
    x = torch.randn(3, 6)
    assert torch.equal(compact.model(x), model(x))
    for name in ("0.weight", "2.weight"):
        stored = compact.stored[name]
        assert stored.mask is not None
        assert torch.equal(stored.mask, stored.value != 0)
        assert stored.sparsity == 0.5
        assert torch.equal(stored.value, compact.model.state_dict()[name])
        assert not torch.signbit(compact.model.state_dict()[name][stored.value == 0]).any()
    assert compact.edits == []


def test_a_mask_that_does_not_move_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, method = net(), Prune(0.5, every=1)
    compressor = Compressor([method])
    compressor.attach(model, None)
    assert method._pattern is not None
    monkeypatch.setattr(method._pattern, "apply", lambda keep: None)
    with pytest.raises(NoEffectError, match=r"asks for sparsity 0\.5 and every mask still"):
        compressor.update(model)


def test_a_threshold_that_removes_nothing_is_an_error() -> None:
    model, compressor = net(), Compressor([Prune(threshold=1e-6, every=1)])
    compressor.attach(model, None)
    with pytest.raises(NoEffectError, match=r"asks for threshold 1e-06 and every mask"):
        compressor.update(model)


def test_no_alarm_before_the_schedule_asks() -> None:
    model, compressor = net(), Compressor([Prune(OneShot(last=0.5, at=0.5), every=1)])
    compressor.attach(model, None)
    compressor.horizon = 10
    for _ in range(4):
        compressor.update(model)
    assert zeros(model) == [0, 0]
    compressor.update(model)
    assert zeros(model) == [60, 50]


def test_sparsity_that_rounds_to_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"would remove nothing: sparsity 0.1 with round_to=16 keeps all"):
        Prune(0.1, round_to=16, pattern="channel").attach(net(), torch.randn(2, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sparsity or threshold, or a budget"),
        ({"sparsity": 0.5, "threshold": 1.0}, "sparsity or threshold, or a budget"),
        ({"sparsity": 1.0}, r"in \[0, 1\); got 1.0"),
        ({"sparsity": 90}, r"in \[0, 1\); got 90"),
        ({"sparsity": Linear(first=-0.1, last=0.5)}, r"in \[0, 1\); got -0.1"),
        ({"threshold": -1.0}, "from 0 up; got -1.0"),
        ({"sparsity": 0.5, "pattern": "chanel"}, "Prune: pattern: no 'chanel' .*did you mean 'channel'"),
        ({"sparsity": 0.5, "pattern": 124}, "YAML makes of 2:4 and the like; put it in quotes"),
        ({"sparsity": 0.75, "pattern": "2:4"}, r"removes 2 of every 4, so its sparsity ends at 0\.5; got 0\.75"),
        ({"sparsity": 0.5, "pattern": "4:4"}, "fewer than all, everywhere alike"),
        ({"threshold": 0.5, "pattern": "2:4"}, "write one sparsity, no threshold or budget and no round_to"),
        ({"sparsity": 0.5, "pattern": "2:4", "allocation": "uniform"}, "'2:4' decides how much goes where; leave out"),
        ({"sparsity": {"": 0.5}, "allocation": "uniform"}, "sparsity by layer decides how much goes where"),
        ({"threshold": 0.5, "allocation": "uniform"}, "threshold decides how much goes where"),
        ({"sparsity": {"fc": 0.5, "conv": 2.0}}, r"in \[0, 1\); got 2.0"),
        ({"sparsity": 0.5, "batches": 0}, "from 1 up"),
        ({"sparsity": 0.5, "dynamics": "rewind"}, r"an object, as \{_target_: .*dynamics.Rewind\}; got 'rewind'"),
        ({"sparsity": 0.5, "penalty": 0.1}, r"an object, as \{_target_: .*penalty.GroupLasso\}; got 0\.1"),
        ({"sparsity": 0.5, "loss": "crossentropy"}, "Prune: loss: no 'crossentropy' .*did you mean 'cross_entropy'"),
        ({"sparsity": 0.5, "every": 0}, "from 1 up"),
        ({"sparsity": 0.5, "round_to": 0}, "from 1 up"),
        ({"sparsity": 0.5, "score": "magnitud"}, "did you mean 'magnitude'"),
        ({"sparsity": 0.5, "allocation": "global"}, "Prune: allocation: no 'global' .*overall, uniform"),
        ({"sparsity": 0.5, "allocation": "above"}, "Prune: allocation: no 'above'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**options)


def test_two_of_four_step_by_step() -> None:
    model: Any = nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    method = Prune(Linear(last=0.5), pattern="2:4", every=1)
    method.attach(model, None)
    for step, left in ((1, 4), (2, 3), (3, 2), (4, 2)):
        weights = [model[0].weight.detach().clone().movedim(1, -1), model[3].weight.detach().clone()]
        method.update(model, step / 4)
        for before, after in zip(weights, [model[0].weight.movedim(1, -1), model[3].weight], strict=True):
            groups = after.reshape(-1, 4)
            assert (groups != 0).sum(1).tolist() == [left] * len(groups)
            expected = before.reshape(-1, 4).abs().topk(left).indices.sort().values
            assert torch.equal(groups.abs().topk(left).indices.sort().values, expected)


def test_sparsity_by_layer() -> None:
    model = net()
    method = Prune({"^0$": Linear(last=0.9), "^2$": 0.25}, every=1)
    method.attach(model, None)
    assert method.update(model, 0.5) == {"prune/amount/^0$": 0.45, "prune/amount/^2$": 0.25}
    assert zeros(model) == [54, 25]
    method.update(model, 1.0)
    assert zeros(model) == [108, 25]
    again = Prune({"^0$": Linear(last=0.9), "^2$": 0.25}, every=1)
    again.set_extra_state(method.get_extra_state())
    again.attach(net(), None)
    assert again.update(model, 1.0) == {}


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        ({"^0$": 0.5}, r"Prune: sparsity says nothing of '2', only of \^0\$: add '\^2\$'"),
        ({"0|2": 0.5, "2": 0.9}, "pattern '2' counts for no layer"),
        ({"0": 0.5, "2": 0.9, "fc": 0.1}, r"pattern 'fc' counts for no layer.*they are 0, 2 \(2 names\)"),
    ],
)
def test_every_layer_needs_one_sparsity(sparsity: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(sparsity).attach(net(), None)


def test_snip_before_the_first_step() -> None:
    model, (x, y) = net(), (torch.randn(16, 6), torch.randint(5, (16,)))
    weights = [model[i].weight for i in (0, 2)]
    loss = nn.functional.cross_entropy(model(x), y)
    felt = [
        (weight * slope).abs().flatten()
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True)
    ]
    expected = torch.cat(felt) >= torch.cat(felt).topk(44).values.min()
    compressor = Compressor([Prune(0.8, score="snip", allocation="overall")])
    compressor.attach(model, None)
    compressor.prepare(model, [(x, y)])
    assert torch.equal(torch.cat([model[i].weight.flatten() != 0 for i in (0, 2)]), expected)


def test_masks_that_move_by_no_movement_are_an_error() -> None:
    model, compressor = net(), Compressor([Prune(0.5, score="movement")])
    compressor.attach(model, None)
    compressor.prepare(model, [])
    with pytest.raises(NoEffectError, match="masks moved before a step: let its schedule begin later"):
        compressor.update(model)


@pytest.mark.parametrize(
    ("score", "got"),
    [(lambda weight: weight.abs(), r"the shape \(120, 1\)"), (lambda weight: weight.sum(1) * torch.nan, "NaN")],
)
def test_a_score_of_the_wrong_form_is_named(score: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"one number for each of 120 units of '0'; got {got}"):
        Prune(0.5, score=score).attach(net(), None)
