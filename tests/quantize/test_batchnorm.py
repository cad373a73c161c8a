import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.quantize import batchnorm
from lightning_compress.quantize.base import WeightQuantizer
from lightning_compress.quantize.learned import LSQ
from lightning_compress.quantize.lowbit import Binary
from lightning_compress.quantize.uniform import SeedAffine, Uniform


class Odd(nn.Module):
    """Every way in which a batch norm may follow a layer and still not be foldable."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.twice_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.shared, self.shared_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.first, self.second, self.common_norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.changed, self.changed_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.relu, self.relu_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.bare, self.bare_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.live, self.live_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.instance, self.instance_norm = nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3, True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain_norm(self.plain(x))
        y = self.twice(x)
        x = y + self.twice_norm(y)  # read by two
        x = self.shared_norm(self.shared(self.shared(x)))  # a layer called twice
        x = self.common_norm(self.first(x)) + self.common_norm(self.second(x))  # a norm called twice
        x = self.changed_norm(F.relu_(self.changed(x)))  # changed in place
        x = self.relu_norm(F.relu(self.relu(x)))  # something between
        x = self.live_norm(self.live(self.bare_norm(self.bare(x))))
        out: Tensor = self.instance_norm(self.instance(x))
        return out


def test_pairs_only_where_folding_is_sound() -> None:
    for _ in range(30):  # tensors that are gone lend their ids to later ones, now and then
        model = Odd()
        assert batchnorm.pairs(model, torch.randn(2, 3, 4, 4)) == {"plain_norm": "plain"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_pairs_leave_modes_and_statistics_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2).eval())
    assert batchnorm.pairs(model, torch.randn(2, 3, 4, 4)) == {"1": "0"}
    assert [module.training for module in model] == [True, True, False]
    state = model[1].state_dict()
    assert int(state["num_batches_tracked"]) == 0


def test_pairs_of_a_resnet() -> None:
    found = batchnorm.pairs(ResNetCIFAR(8, shortcut="B"), torch.randn(1, 3, 8, 8))
    assert len(found) == 9
    assert found["bn1"] == "conv1"
    assert found["layer2.0.shortcut.1"] == "layer2.0.shortcut.0"


BODIES: dict[str, Callable[[], tuple[nn.Module, nn.Module, tuple[int, ...]]]] = {
    "conv": lambda: (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), (4, 3, 5, 5)),
    "no-bias": lambda: (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), (4, 3, 5, 5)),
    "depthwise": lambda: (nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), (4, 8, 5, 5)),
    "linear": lambda: (nn.Linear(6, 8), nn.BatchNorm1d(8), (4, 6)),
    "sync": lambda: (nn.Conv1d(3, 8, 3), nn.SyncBatchNorm(8), (4, 3, 7)),
}


@torch.no_grad()
def compact(body: str) -> tuple[Compact, Tensor]:
    torch.manual_seed(1)
    layer, norm, shape = BODIES[body]()
    norms: Any = norm
    norms.weight.copy_(torch.tensor([1.5, -0.7, 0.0, 0.3, -2.0, 1e-42, 0.9, 0.0]))  # negative, dead, as good as dead
    norms.bias.normal_()
    norms.bias[7] = 0.0  # a masked channel: weight, bias, scale and shift are zero
    norms.running_mean.normal_()
    norms.running_var.uniform_(0.2, 3.0)
    net: Any = nn.Sequential(layer, norm).eval().requires_grad_(False)
    net[0].weight[7] = 0.0
    if net[0].bias is not None:
        net[0].bias[7] = 0.0
    return Compact(net, {name: Stored(value.clone()) for name, value in net.state_dict().items()}), torch.randn(shape)


@pytest.mark.parametrize("bits", [None, 2, 4, 8])
@pytest.mark.parametrize("body", BODIES)
def test_outputs_stay_and_codes_stay_up_to_sign(body: str, bits: int | None) -> None:
    before, x = compact(body)
    if bits is not None:
        weight = Uniform(bits).store(before.stored["0.weight"])
        before.stored["0.weight"] = weight
        before.model.get_parameter("0.weight").copy_(weight.value)
    codes = before.stored["0.weight"].codes
    wanted = before.model(x)
    after = batchnorm.folded(before, "1", "0")
    torch.testing.assert_close(after.model(x), wanted, atol=1e-5, rtol=1e-5)
    assert isinstance(after.model.get_submodule("1"), nn.Identity)
    assert after.edits == [{"kind": "fold", "norm": "1", "into": "0"}]
    assert set(after.stored) == set(after.model.state_dict()) == {"0.weight", "0.bias"}
    for name, tensor in after.model.state_dict().items():
        assert torch.equal(after.stored[name].value, tensor)
        assert torch.equal(after.stored[name].dequantize(), tensor)
    stored = after.stored["0.weight"]
    if bits is None:
        assert stored.codes is None
        return
    assert codes is not None
    assert stored.codes is not None
    assert stored.scale is not None
    sign = torch.tensor([1, -1, 0, 1, -1, 0, 1, 0]).view(-1, *[1] * (codes.dim() - 1))
    assert torch.equal(stored.codes, codes * sign)
    assert (stored.scale >= torch.finfo(torch.float32).tiny).all()
    assert (stored.bits, stored.axis, stored.symmetric) == (bits, 0, True)


def test_the_mask_survives() -> None:
    before, x = compact("linear")
    mask = torch.rand(8, 6) < 0.5
    before.stored["0.weight"] = Uniform(4).store(before.stored["0.weight"].masked(mask))
    before.model.get_parameter("0.weight").copy_(before.stored["0.weight"].value)
    wanted = before.model(x)
    after = batchnorm.folded(before, "1", "0")
    torch.testing.assert_close(after.model(x), wanted, atol=1e-5, rtol=1e-5)
    assert not after.stored["0.weight"].value[~mask].any()


FORMS: dict[str, WeightQuantizer] = {
    "tensor": Uniform(4, per_channel=False),
    "affine": Uniform(4, symmetric=False),
    "affine-tensor": Uniform(3, symmetric=False, per_channel=False),
    "groups": Uniform(4, group_size=2),
    "affine-groups": Uniform(4, group_size=4, symmetric=False),
    "signed": LSQ(4),
    "levels": SeedAffine(3),
    "levels-and-scales": Binary(1),
}


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("body", ["conv", "linear"])
def test_every_form_of_weight_takes_a_factor_a_channel(body: str, form: str, mask: bool) -> None:
    before, x = compact(body)
    raw = before.stored["0.weight"]
    FORMS[form].start(raw.value)
    weight = FORMS[form].store(raw)
    if mask:
        weight = weight.masked(torch.rand(raw.value.shape) < 0.5)
    before.stored["0.weight"] = weight
    before.model.get_parameter("0.weight").copy_(weight.value)
    wanted = before.model(x)
    assert batchnorm.can_fold(weight)
    after = batchnorm.folded(before, "1", "0")
    torch.testing.assert_close(after.model(x), wanted, atol=1e-5, rtol=1e-5)
    stored = after.stored["0.weight"]
    assert torch.equal(stored.dequantize(), stored.value)
    assert torch.equal(after.model.state_dict()["0.weight"], stored.value)
    assert stored.codes is not None
    assert (stored.bits, stored.symmetric) == (weight.bits, weight.symmetric)
    top = 2 ** (stored.bits - 1) - 1 if stored.symmetric and stored.levels is None else 2**stored.bits - 1
    assert int(stored.codes.max()) <= top
    assert int(stored.codes.min()) >= (-top if stored.symmetric and stored.levels is None else 0)
    if mask:
        assert weight.mask is not None
        assert not stored.value[~weight.mask].any()


def test_scales_along_another_dimension_take_no_factor() -> None:
    stored = Stored(torch.zeros(4, 3))
    assert batchnorm.can_fold(stored)
    assert not batchnorm.can_fold(stored.coded(torch.ones(4, 3), torch.ones(3), bits=4, axis=1))


def test_frozen_norms_use_their_running_statistics_and_leave_them_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    reference = copy.deepcopy(net).eval()
    norms, x = batchnorm.FrozenNorms(), torch.randn(6, 3, 2, 2)
    norms.put_on(net)
    net.train()
    assert not torch.allclose(net(x), reference(x))
    norms.frozen = True
    reference.load_state_dict(net.state_dict())
    for _ in range(2):
        net.train()  # as Lightning does after each validation
        assert torch.equal(net(x), reference(x))
        assert not net[1].training
        assert net.training
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), reference.state_dict().values(), strict=True)
    )
    net(x).sum().backward()
    assert net[1].weight.grad is not None
    batchnorm.FrozenNorms.take_off(net)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_frozen_norms_compile() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    norms, x = batchnorm.FrozenNorms(), torch.randn(6, 3, 2, 2)
    norms.put_on(net)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    compiled(x)
    norms.frozen = True
    net.train()
    wanted = copy.deepcopy(net).eval()(x)
    torch.testing.assert_close(compiled(x), wanted)
    torch.testing.assert_close(compiled(x), wanted)
