import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.quantize.equalize import Link, equalize, links

INPUTS = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def uneven(model: nn.Module) -> Any:
    """Random norms and weights whose channels differ a lot."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for tensor in (module.running_mean, module.bias):
                    assert tensor is not None
                    tensor.normal_()
                assert module.running_var is not None
                module.running_var.uniform_(0.1, 9.0)
                module.weight.normal_().mul_(3.0)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                weight = module.weight
                weight *= torch.logspace(-1, 1, len(weight)).reshape(-1, *[1] * (weight.dim() - 1))
    return model.eval()


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), nn.ReLU(inplace=True), nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)
    )


@pytest.mark.parametrize("make", [SmallConv, mlp, lambda: ResNetCIFAR(depth=8, in_channels=1)])
def test_the_function_stays(make: Any) -> None:
    model = uneven(make())
    before = model(INPUTS)
    found = equalize(model, INPUTS)
    assert found
    torch.testing.assert_close(model(INPUTS), before, rtol=1e-5, atol=1e-5 * float(before.detach().abs().max()))


def test_in_training_the_function_stays_too() -> None:
    model = SmallConv().train()
    with torch.no_grad():
        for _ in range(30):
            model(INPUTS)  # running statistics are those of these inputs
    before = copy.deepcopy(model)(INPUTS)
    equalize(model, INPUTS)
    torch.testing.assert_close(model(INPUTS), before, rtol=1e-3, atol=1e-3)


def test_one_step_by_hand() -> None:
    model: Any = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[4.0], [-1.0]]))
        model[0].bias.copy_(torch.tensor([2.0, 3.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 9.0]]))
    equalize(model, torch.ones(1, 1))
    # s = sqrt(4 / 1) = 2 and sqrt(1 / 9) = 1/3
    torch.testing.assert_close(model[0].weight, torch.tensor([[2.0], [-3.0]]))
    torch.testing.assert_close(model[0].bias, torch.tensor([1.0, 9.0]))
    torch.testing.assert_close(model[2].weight, torch.tensor([[2.0, 3.0]]))


def test_ranges_are_even_across_a_folded_norm() -> None:
    model = uneven(SmallConv())
    equalize(model, INPUTS)
    for first, norm, second in ((model.conv1, model.bn1, model.conv2), (model.conv3, model.bn3, model.fc)):
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        rows = first.weight.flatten(1).abs().amax(1) * factor.abs()
        columns = second.weight.transpose(0, 1).flatten(1).abs().amax(1)
        torch.testing.assert_close(rows, columns, rtol=5e-3, atol=0.0)
        torch.testing.assert_close(factor, torch.ones_like(factor), rtol=1e-4, atol=0.0)


def test_dead_channels_stay() -> None:
    model: Any = mlp()
    with torch.no_grad():
        model[1].weight[0] = 0.0
        model[3].weight[:, 1] = 0.0
    before = model(INPUTS)
    equalize(model, INPUTS)
    torch.testing.assert_close(model(INPUTS), before, rtol=1e-5, atol=1e-6)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_links_of_a_plain_net_go_through_norms_and_pools() -> None:
    assert links(SmallConv(), INPUTS) == [
        Link("conv1", "bn1", "conv2"),
        Link("conv2", "bn2", "conv3"),
        Link("conv3", "bn3", "fc"),
    ]


class Odd(nn.Module):
    """Layers that must not be linked, each for a reason of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        if kind == "tied":
            self.other.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.first(x)) if self.kind == "gelu" else self.first(x).relu()
        z: Tensor = self.second(y)
        if self.kind == "residual":
            z = z + y
        elif self.kind == "twice":
            z = self.second(z.sigmoid())
        elif self.kind == "two readers":
            z = z + self.other(y)
        return z


@pytest.mark.parametrize("kind", ["gelu", "residual", "twice", "two readers", "tied"])
def test_what_cannot_be_linked_is_not(kind: str) -> None:
    assert links(Odd("plain"), torch.ones(2, 4)) == [Link("first", None, "second")]
    assert links(Odd(kind), torch.ones(2, 4)) == []
    with pytest.raises(ValueError, match="no two layers are joined"):
        equalize(Odd(kind), torch.ones(2, 4))


def test_flattened_pixels_and_depthwise_layers_are_not_linked() -> None:
    pixels = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3))
    depthwise = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4))
    assert links(pixels, INPUTS) == links(depthwise, INPUTS) == []
