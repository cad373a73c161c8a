import pytest
import torch

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.lenet import LeNet5


def closed_form(a: int, b: int, c: int) -> int:
    return (25 * a + a) + (25 * a * b + b) + (16 * b * c + c) + (c * 10 + 10)


@pytest.mark.parametrize(
    ("widths", "params", "count"),
    [((20, 50, 500), 431_080, 2_293_000), ((32, 64, 512), 582_026, 4_267_008)],
)
def test_published_size_and_macs(widths: tuple[int, int, int], params: int, count: int) -> None:
    net = LeNet5(widths)
    assert num_params(net) == closed_form(*widths) == params
    assert sum(macs(net, torch.zeros(1, 1, 28, 28)).values()) == count


def test_layers_of_han_2015() -> None:
    # "Learning both Weights and Connections", table 3: FLOP = 2 MACs, in thousands.
    counts = macs(LeNet5(), torch.zeros(1, 1, 28, 28))
    assert [2 * count // 1000 for count in counts.values()] == [576, 3200, 800, 10]


def test_smallest_image() -> None:
    assert LeNet5(image_size=16, in_channels=3)(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match="image_size >= 16, got 15"):
        LeNet5(image_size=15)
