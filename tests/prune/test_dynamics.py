from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import moments
from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.schedule import OneShot, Polynomial, Rounds, Schedule
from lightning_compress.prune.dynamics import Dynamics, Rewind, Soft
from lightning_compress.prune.method import Prune

EXAMPLE = torch.zeros(2, 2, 4, 4)


def net() -> Any:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def attached(model: Any, method: Prune, horizon: int = 100) -> Compressor:
    compressor = Compressor([method])
    compressor.attach(model, EXAMPLE)
    compressor.horizon = horizon
    compressor.prepare(model, [])
    return compressor


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 2, 4, 4)).square().mean().backward()
    optimizer.step()


def state(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in moments.latents(model).items()}


def entries(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: sorted(tensor.flatten().tolist()) for name, tensor in tensors.items()}


@pytest.mark.parametrize(("to", "shuffle"), [(0, False), (1, False), (0, True)])
def test_rewinding_is_exact_and_the_optimizer_forgets(to: int, shuffle: bool) -> None:
    model = net()
    dynamics = Rewind(to / 9, shuffle=shuffle)
    compressor = attached(model, Prune(Rounds(rate=0.5, rounds=2), every=1, dynamics=dynamics), horizon=9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    earlier = state(model)
    for now in range(1, 8):
        step(model, optimizer)
        largest = model[4].weight.abs().flatten().topk(48 // 2 ** (now // 3)).indices
        compressor.update(model, [optimizer])
        assert len(optimizer.state) == (0 if now in (3, 6) else 6)
        if now == to:
            earlier = state(model)
        if now in (3, 6):
            back = state(model)
            assert entries(back) == entries(earlier)
            assert all(torch.equal(back[name], earlier[name]) for name in earlier) != shuffle
            assert int(back["1.num_batches_tracked"]) == to
            # What stays was chosen by the trained weights.
            mask = model[4].parametrizations.weight[0].mask.flatten()
            assert mask.nonzero().flatten().tolist() == sorted(largest.tolist())


def test_rewinding_what_was_not_trained_is_an_error() -> None:
    model = net()
    compressor = attached(model, Prune(OneShot(last=0.5, at=0.02), every=1, dynamics=Rewind()))
    compressor.update(model)
    with pytest.raises(NoEffectError, match=r"every weight where it was at to=0\.0: no training lies before"):
        compressor.update(model)


def test_soft_by_hand() -> None:
    model: Any = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[4.0, -3.0, 2.0, 1.0]]))
    method = Prune(0.5, every=2, dynamics=Soft(until=0.5))
    method.attach(model, None)
    method.update(model, 0.0)
    assert model.weight.tolist() == [[4.0, -3.0, 2.0, 1.0]]  # not its step yet
    method.update(model, 0.1)
    assert model.weight.tolist() == [[4.0, -3.0, 0.0, 0.0]]
    model(torch.ones(4)).backward()
    assert model.parametrizations.weight.original.grad.tolist() == [[1.0] * 4]  # zeros learn on
    with torch.no_grad():
        model.parametrizations.weight.original[0, 3] = 9.0
    method.update(model, 0.2)
    method.update(model, 0.3)
    assert model.weight.tolist() == [[4.0, 0.0, 0.0, 9.0]]
    assert not method.settled(0.3)
    method.update(model, 0.5)  # the last time, whatever its step
    with torch.no_grad():
        model.parametrizations.weight.original.fill_(5.0)
    for progress in (0.6, 0.7, 1.0):
        assert method.update(model, progress) == {}
    assert model.weight.tolist() == [[5.0, 0.0, 0.0, 5.0]]
    assert method.settled(0.5)
    assert method.missing_effect(model, 0.5) is None


def test_soft_channels_lose_filters_first_and_the_rest_at_the_end() -> None:
    model = net()
    compressor = attached(model, Prune(0.5, pattern="channel", every=1, dynamics=Soft(until=0.02)))
    norms = (model[0].weight.flatten(1) != 0).any(1)
    assert int(norms.sum()) == 2
    assert (model[1].weight != 0).all()
    compressor.update(model)
    compressor.update(model)
    assert [int((tensor != 0).sum()) for tensor in (model[1].weight, model[0].bias)] == [2, 2]
    assert compressor.finalize(model, EXAMPLE).model.get_submodule("0").weight.shape == (2, 2, 3, 3)


@pytest.mark.parametrize(
    ("sparsity", "dynamics", "message"),
    [
        (OneShot(last=0.5), lambda: Rewind(), r"between to=0\.0 and the first move, and the schedule asks for 0\.5"),
        (Rounds(rounds=1), lambda: Rewind(0.6), r"the schedule asks for 0\.2 by then; let it begin later"),
        (0.5, lambda: Rewind(1.0), "0 <= to < 1, got to=1.0"),
        (Polynomial(last=0.5), lambda: Soft(0.5), r"asks for 0\.4375 then but 0\.5 at its end; let it end by 0\.5"),
        (0.5, lambda: Soft(0.0), "0 < until <= 1, got until=0.0"),
    ],
)
def test_what_does_not_fit_is_refused(sparsity: float | Schedule, dynamics: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(sparsity, dynamics=dynamics()).attach(net(), EXAMPLE)


def test_dynamics_keep_their_state_in_the_checkpoint() -> None:
    def build() -> tuple[Any, Compressor]:
        torch.manual_seed(0)
        model = net()
        return model, attached(model, Prune(Rounds(rounds=1), every=1, dynamics=Rewind()), horizon=4)

    (a, first), (b, second) = build(), build()
    assert type(Prune(0.5).dynamics) is Dynamics
    optimizer = torch.optim.SGD(a.parameters(), lr=0.1)
    step(a, optimizer)
    first.update(a)
    with torch.no_grad():
        b[0].weight.fill_(3.0)
    second.load_state_dict(first.state_dict())
    b.load_state_dict(a.state_dict())
    first.update(a)
    second.update(b)
    assert all(torch.equal(tensor, state(a)[name]) for name, tensor in state(b).items())
