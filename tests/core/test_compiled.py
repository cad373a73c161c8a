import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compiled import compiled
from lightning_compress.core.tap import Taps


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layer(inputs)
        return out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_has_its_own_hooks_and_not_those_of_one_compiled_before() -> None:
    inputs = torch.randn(3, 4)
    plain, rounded = _Net(), _Net()
    compiled(plain)(inputs)
    taps = Taps(rounded, ["layer"])
    rounded.layer.register_forward_pre_hook(lambda _module, given: (given[0].round(),))
    found = compiled(rounded)(inputs)
    assert torch.equal(taps.features["layer"], found)
    torch.testing.assert_close(found, rounded.layer(inputs))
    assert not torch.equal(found, nn.functional.linear(inputs, rounded.layer.weight, rounded.layer.bias))
    torch._dynamo.reset()
