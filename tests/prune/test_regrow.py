from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.schedule import Cosine, Linear
from lightning_compress.prune.method import Prune
from lightning_compress.prune.regrow import Regrow


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient in a linear layer is the sum of its inputs."""
    return outputs.sum()


def step(compressor: Compressor, model: Any, optimizer: Any, inputs: Tensor) -> dict[str, float]:
    optimizer.zero_grad()
    outputs = model(inputs)
    loss = total(outputs, inputs)
    compressor.loss(compressor.step((inputs, inputs), outputs, loss, model))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return compressor.update(model, [optimizer])


def test_one_move_of_rigl_by_hand() -> None:
    model: Any = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[40.0, -30.0, 20.0, 3.0, 2.0, 1.0]]))
    compressor = Compressor([Prune(0.5, every=3, loss=total, dynamics=Regrow(0.6, until=1.0))])
    compressor.attach(model, None)
    compressor.horizon = 100_000
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs = torch.tensor([[1.0, 1.0, 1.0, 5.0, -9.0, 2.0], [0.0, 0.0, 0.0, 0.0, -1.0, 2.0]])
    compressor.prepare(model, [(inputs, inputs)])
    kept = [40.0, -30.0, 20.0]
    assert model.weight.tolist() == [[*kept, 0.0, 0.0, 0.0]]  # the first masks, by magnitude
    step(compressor, model, optimizer, inputs)
    latent = model.parametrizations.weight.original
    with torch.no_grad():
        latent[0, 3:] = 7.0  # what weight decay or momentum may leave behind a mask
        optimizer.state[latent]["momentum_buffer"].fill_(2.0)
    # Six tenths of three are two: the smallest of 40, -30 and 20, for the gradients 5, -10 and 4, of which two win.
    assert step(compressor, model, optimizer, inputs) == {"prune/returned": 2.0}
    assert (model.weight != 0).tolist() == [[True, False, False, False, False, False]]
    assert model.parametrizations.weight[0].mask.tolist() == [[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]]
    assert latent[0, 3:5].tolist() == [0.0, 0.0]
    momentum = optimizer.state[latent]["momentum_buffer"].flatten()
    assert momentum[3:5].tolist() == [0.0, 0.0]
    assert momentum[[0, 1, 2, 5]].tolist() == pytest.approx([2.8, 2.8, 2.8, 1.8])
    step(compressor, model, optimizer, inputs)
    assert model.weight[0, 3:].tolist() == pytest.approx([-0.5, 1.0, 0.0])  # lr times gradient, no old momentum


def test_what_was_dropped_may_return_at_once_as_it_was() -> None:
    model: Any = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[40.0, 30.0, 0.1]]))
    compressor = Compressor([Prune(1 / 3, every=2, loss=total, dynamics=Regrow(0.5, until=1.0))])
    compressor.attach(model, None)
    compressor.horizon = 100_000
    inputs = torch.tensor([[1.0, 5.0, 2.0]])
    compressor.prepare(model, [(inputs, inputs)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert step(compressor, model, optimizer, inputs) == {"prune/returned": 0.0}
    assert model.weight.tolist() == [[40.0, 30.0, 0.0]]


@pytest.mark.parametrize(
    ("grow", "pattern", "allocation"),
    [("random", "unstructured", "erdos_renyi_kernel"), ("gradient", "2x1", "uniform"), ("random", "row", "uniform")],
)
def test_each_layer_keeps_its_sparsity_while_masks_move(grow: str, pattern: str, allocation: str) -> None:
    model: Any = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 8))
    method = Prune(
        0.75, score="random", pattern=pattern, allocation=allocation, every=2, loss=total, dynamics=Regrow(grow=grow)
    )
    compressor, layers = Compressor([method]), (model[0], model[2])
    compressor.attach(model, None)
    compressor.horizon = 40
    inputs = torch.randn(9, 6)
    compressor.prepare(model, [(inputs, inputs)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    masks = [layer.parametrizations.weight[0].mask for layer in layers]
    counts, seen = [int(mask.sum()) for mask in masks], []
    for now in range(1, 41):
        before = [mask.clone() for mask in masks]
        logged = step(compressor, model, optimizer, inputs)
        assert [int(mask.sum()) for mask in masks] == counts
        moved = sum(int((mask > earlier).sum()) for mask, earlier in zip(masks, before, strict=True))
        assert moved == logged.get("prune/returned", 0.0)
        seen += [now] if moved else []
    assert seen
    assert max(seen) < 30  # until 0.75
    # prepare counts as a call
    assert all(now % 2 == 1 for now in seen)


def test_the_fraction_is_that_of_rigl() -> None:
    assert Regrow(0.3, until=0.75).fraction == Cosine(first=0.3, last=0.0, end=0.75)


def test_masks_that_never_moved_are_an_error() -> None:
    model = nn.Linear(6, 4)
    compressor = Compressor([Prune(0.5, every=50, dynamics=Regrow(grow="random"))])
    compressor.attach(model, None)
    compressor.horizon = 4
    compressor.prepare(model, [])
    compressor.update(model)
    compressor.update(model)
    with pytest.raises(NoEffectError, match=r"no weight has returned by until=0\.75; write a smaller every"):
        compressor.update(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "2:4"}, "units of pattern='2:4' cannot change places one by one; write unstructured, row"),
        ({"pattern": "channel"}, "units of pattern='channel' cannot change places"),
        ({"sparsity": Linear(last=0.5)}, r"got a schedule from 0 to 0\.5, write the number 0\.5"),
        ({"dynamics": {"fraction": 1.0}}, "0 < fraction < 1, the share of what is kept"),
        ({"dynamics": {"until": 0.0}}, "0 < until <= 1, a share of the phase, not an epoch"),
        ({"dynamics": {"grow": "gradiend"}}, "did you mean 'gradient'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(ValueError, match=message):
        Prune(**{"sparsity": 0.5, **options, "dynamics": Regrow(**options.get("dynamics", {}))}).attach(
            model, torch.zeros(2, 8)
        )
