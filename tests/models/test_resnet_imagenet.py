import pytest
import torch

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.resnet_imagenet import ResNetImageNet


@pytest.mark.parametrize(("depth", "params", "billions"), [(18, 11.69, 1.81), (34, 21.80, 3.66)])
def test_published_sizes(depth: int, params: float, billions: float) -> None:
    with torch.device("meta"):
        net, image = ResNetImageNet(depth), torch.zeros(1, 3, 224, 224)
    assert round(num_params(net) / 1e6, 2) == params
    assert round(sum(macs(net, image).values()) / 1e9, 2) == billions


def test_refuses_a_depth_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="one of 18, 34, got 50"):
        ResNetImageNet(50)
