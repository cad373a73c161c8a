import pytest
import torch

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.mobilenet_v1 import MobileNetV1


@pytest.mark.parametrize(
    ("width", "params", "millions"), [(1.0, 4.2, 569), (0.75, 2.6, 325), (0.5, 1.3, 149), (0.25, 0.5, 41)]
)
def test_published_sizes(width: float, params: float, millions: int) -> None:
    with torch.device("meta"):
        net, image = MobileNetV1(width=width), torch.zeros(1, 3, 224, 224)
    assert round(num_params(net) / 1e6, 1) == params
    assert round(sum(macs(net, image).values()) / 1e6) == millions
