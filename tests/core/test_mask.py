from typing import Any

import torch
from torch import nn

from lightning_compress.core.mask import Mask
from lightning_compress.core.stored import Stored


def test_weight_and_gradient_are_zero_where_masked() -> None:
    layer: Any = nn.Linear(3, 2)
    original = layer.weight.detach().clone()
    mask = Mask.on(layer, "weight", (2, 3))
    assert torch.equal(layer.weight, original)
    mask.mask.copy_(torch.tensor([[1, 0, 1], [0, 1, 1]]))
    assert layer.weight.detach().count_nonzero() == 4
    layer(torch.ones(4, 3)).sum().backward()
    latent = layer.parametrizations.weight.original
    assert torch.equal(latent.detach(), original)
    assert torch.equal(latent.grad, 4.0 * mask.mask)


def test_the_optimizer_cannot_bring_a_weight_back() -> None:
    layer: Any = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(6):
        if step == 2:  # momentum is there already
            Mask.on(layer, "weight", (2, 3)).mask[0] = 0
        optimizer.zero_grad()
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    assert layer.weight[0].tolist() == [0.0, 0.0, 0.0]
    assert layer.weight[1].detach().all()


def test_mask_is_in_the_state_and_not_a_parameter() -> None:
    layer = nn.Linear(3, 2)
    Mask.on(layer, "weight", (2, 1))
    assert "parametrizations.weight.0.mask" in layer.state_dict()
    assert len(list(layer.parameters())) == 2


def test_store_broadcasts() -> None:
    mask = Mask((2, 1))
    mask.mask[0] = 0
    stored = mask.store(Stored(torch.tensor([[-1.0, -2.0], [3.0, 4.0]])))
    assert stored.value.tolist() == [[0.0, 0.0], [3.0, 4.0]]
    assert stored.mask is not None
    assert stored.mask.tolist() == [[False, False], [True, True]]


def test_a_mask_of_a_tensor_keeps_its_zeros() -> None:
    start = torch.tensor([[0.0, -1.0], [2.0, 0.0]])
    zeros = Mask.of(start)
    assert zeros(torch.full((2, 2), 3.0)).tolist() == [[0.0, 3.0], [3.0, 0.0]]
    stored = zeros.store(Stored(torch.full((2, 2), 3.0)))
    assert stored.value.tolist() == [[0.0, 3.0], [3.0, 0.0]]
    assert stored.mask is not None
    assert torch.equal(stored.mask, start != 0)
