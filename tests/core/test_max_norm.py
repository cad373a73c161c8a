import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_compress.core.mask import Mask
from lightning_compress.core.max_norm import MaxNorm
from lightning_compress.core.schedule import Linear


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(3, 5, 2)])
def test_what_is_too_long_is_brought_to_the_limit_as_torch_does(layer: nn.Module) -> None:
    assert isinstance(layer.weight, nn.Parameter)
    nn.init.normal_(layer.weight)
    rows = layer.weight.detach().flatten(1).norm(dim=1)
    limit = float(rows.median())
    expected = torch.renorm(layer.weight.detach(), 2, 0, limit)
    MaxNorm(limit).update(layer, 0.0)
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert (expected.flatten(1).norm(dim=1) < rows - 1e-4).sum() == 2  # of five rows those above the median


def test_follows_a_schedule_and_leaves_out_layers() -> None:
    first, last = nn.Linear(4, 3), nn.Linear(3, 2)
    for layer in (first, last):
        nn.init.constant_(layer.weight, 5.0)
    MaxNorm(Linear(first=4.0, last=2.0), exclude=["<last>"]).update(nn.Sequential(first, last), 0.5)
    torch.testing.assert_close(first.weight, nn.Parameter(torch.full((3, 4), 1.5)))
    assert (last.weight == 5.0).all()


def test_counts_only_what_masks_let_through() -> None:
    layer = nn.Linear(3, 1)
    layer.weight.data.copy_(torch.tensor([[3.0, 4.0, 100.0]]))
    mask = Mask((1, 3))
    mask.mask[0, 2] = 0.0
    parametrize.register_parametrization(layer, "weight", mask)
    MaxNorm(5.0).update(layer, 0.0)
    assert layer.weight.tolist() == [[3.0, 4.0, 0.0]]
    MaxNorm(2.5).update(layer, 0.0)
    assert layer.weight.tolist() == [[1.5, 2.0, 0.0]]


def test_refuses_a_limit_of_nothing_and_a_model_without_layers() -> None:
    with pytest.raises(ValueError, match=r"limit must be positive.*got 0"):
        MaxNorm(Linear(first=3.0, last=0.0))
    with pytest.raises(ValueError, match="MaxNorm matched no layer"):
        MaxNorm().attach(nn.ReLU(), None)
