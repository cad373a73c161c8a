import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core import edits, surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.models.vgg_cifar import VGGCIFAR
from lightning_compress.prune import allocate
from lightning_compress.prune.channels import Channel
from lightning_compress.prune.method import Prune
from lightning_compress.prune.scores import magnitude, squared
from tests.prune.removing import lived

IMAGE = (2, 3, 8, 8)


class Concat(nn.Module):
    """Two branches, one batch norm over both, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.mix = nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        out: Tensor = self.fc(self.mix(x).flatten(1))
        return out


class Between(nn.Module):
    """conv -> `inner` -> conv -> linear: what `inner` does to the channels decides."""

    def __init__(self, inner: Callable[[Tensor], Tensor], out: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = inner
        self.conv2 = nn.Conv2d(out, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.conv2(self.inner(self.conv1(x)))).mean((2, 3)))
        return out


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def shuffle(x: Tensor) -> Tensor:
    return x.reshape(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def flat() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
        nn.BatchNorm1d(10),
        nn.GELU(),
        nn.Linear(10, 4),
    )


def separable() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 12, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def resnet(shortcut: Any) -> nn.Module:
    return ResNetCIFAR(8, shortcut=shortcut, width=0.5)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "flatten": flat,
    "separable": separable,
    "concat": Concat,
    "resnet-A": lambda: resnet("A"),
    "resnet-B": lambda: resnet("B"),
    "vgg": lambda: VGGCIFAR(11, image_size=8, width=0.1),
    "shared": lambda: Between(lambda x: x + x.flip(2)),
}


def pruned(model: nn.Module, x: Tensor, **options: Any) -> tuple[nn.Module, Compressor, Compact]:
    compressor = Compressor([Prune(pattern="channel", every=1, **options)])
    model = compressor.attach(model, x)
    compressor.update(model)
    return model.eval(), compressor, compressor.finalize(model, x)


@pytest.mark.parametrize("allocation", ["uniform", "overall"])
@pytest.mark.parametrize("name", ZOO)
def test_the_small_model_is_the_masked_model(name: str, allocation: str) -> None:
    x = torch.randn(IMAGE)
    model, compressor, compact = pruned(lived(ZOO[name]()), x, sparsity=0.5, allocation=allocation)
    masked = model(x)
    assert masked.abs().max() > 0.01
    torch.testing.assert_close(compact.model(x), masked, atol=1e-5, rtol=1e-5)
    before = sum(p.numel() for p in surgery.plain(model).parameters())
    after = sum(p.numel() for p in compact.model.parameters())
    assert after < 0.9 * before
    # The small one has no masked channel left, and what is stored is what it holds.
    assert set(compact.stored) == set(compact.model.state_dict())
    for key, tensor in compact.model.state_dict().items():
        assert torch.equal(compact.stored[key].value, tensor)
    # The edits alone rebuild the shape.
    rebuilt = edits.replay(ZOO[name](), json.loads(json.dumps(compact.edits)))
    rebuilt.load_state_dict(compact.model.state_dict())
    torch.testing.assert_close(rebuilt.eval()(x), compact.model(x))
    # The masked model was left as it is.
    assert torch.equal(model(x), masked)
    assert model.train()(x).requires_grad
    del compressor


def test_with_option_a_the_residual_stream_goes_but_not_what_is_padded_to_it() -> None:
    x = torch.randn(IMAGE)
    _, _, compact = pruned(lived(resnet("A")), x, sparsity=0.5)
    small: Any = compact.model
    streams = [small.conv1, small.layer1[0].conv2, small.layer2[0].conv2, small.layer3[0].conv2]
    assert [conv.out_channels for conv in streams] == [4, 4, 12, 28]  # 8, 8, 16 and 32, of which 8 came in first
    assert [getattr(small, f"layer{n}")[0].conv1.out_channels for n in (1, 2, 3)] == [4, 8, 16]


def test_with_option_b_the_residual_stream_goes_too(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(IMAGE)
    with caplog.at_level(logging.WARNING):
        _, _, compact = pruned(lived(resnet("B")), x, sparsity=0.5)
    assert caplog.text == ""
    small: Any = compact.model
    assert [small.conv1.out_channels, small.layer1[0].conv2.out_channels, small.layer1[0].conv1.in_channels] == [4] * 3
    assert small.fc.in_features == 16


def test_batch_norm_scale_and_shift_and_bias_are_masked() -> None:
    x = torch.randn(IMAGE)
    model, _, _ = pruned(lived(flat()), x, sparsity=0.5)
    net: Any = model
    gone = (net[0].weight.flatten(1).abs().sum(1) == 0).nonzero().flatten()
    assert len(gone) == 3
    assert net[1].weight[gone].tolist() == net[1].bias[gone].tolist() == [0.0] * 3
    assert net[1].weight.detach().count_nonzero() == net[1].bias.detach().count_nonzero() == 3
    assert net[3].bias.detach().count_nonzero() == 4
    assert not net[:2](x)[:, gone].any()
    # The output layer and nobody else reads them: weights on the in side are left to the cut.
    assert net[9].weight.detach().all()


def test_masked_tensors_get_no_gradient() -> None:
    x = torch.randn(4, 3, 8, 8)
    model, _, _ = pruned(lived(resnet("B")), x, sparsity=0.5)
    model.train()(x).square().sum().backward()
    seen = 0
    for module in model.modules():
        for stack in getattr(module, "parametrizations", {}).values():
            mask = stack[0].mask.expand_as(stack.original)
            assert not stack.original.grad[mask == 0].any()
            assert stack.original.grad[mask == 1].any()
            seen += 1
    assert seen == 9 + 2 * 9  # every conv, and scale and shift of every batch norm


def test_masks_stay_through_training_and_only_grow() -> None:
    x = torch.randn(4, 3, 8, 8)
    method = Prune(lambda progress: 0.7 * progress, pattern="channel", every=1)
    model = method.attach(lived(flat()), x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    gone: dict[str, Tensor] = {}
    for step in range(1, 6):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        method.update(model, step / 5)
        assert method._pattern is not None
        for name, keep in method._pattern.keep().items():
            assert not (keep & gone.get(name, torch.zeros_like(keep))).any()
            gone[name] = ~keep
            assert int(keep.sum()) == allocate.num_kept(len(keep), 0.7 * step / 5)
    method.update(model, 0.2)  # a schedule that falls gives nothing back
    assert method._pattern is not None
    assert all(torch.equal(~keep, gone[name]) for name, keep in method._pattern.keep().items())


@pytest.mark.parametrize("multiple", [4, 8])
def test_round_to(multiple: int) -> None:
    x = torch.randn(IMAGE)
    _, _, compact = pruned(ResNetCIFAR(8, shortcut="B"), x, sparsity=0.6, round_to=multiple, allocation="overall")
    widths = {module.out_channels for module in compact.model.modules() if isinstance(module, nn.Conv2d)}
    assert all(width % multiple == 0 for width in widths)
    assert min(widths) < 16


def test_scores_sum_over_every_layer_that_writes_the_channel() -> None:
    net: Any = resnet("B")
    expected = sum(
        layer.weight.detach().square().flatten(1).sum(1) for layer in (net.layer2[0].conv2, net.layer2[0].shortcut[0])
    )
    pattern = Channel(net, torch.randn(IMAGE), select_all(net))
    torch.testing.assert_close(squared(pattern.view()["layer2.0.conv2"]), expected)
    everything = pattern.keep()
    pattern.apply(everything | {"layer2.0.conv2": torch.arange(16) != 5})
    assert not pattern.view()["layer2.0.conv2"][5].any()


def test_reading_is_the_columns_of_every_layer_that_reads_the_channel() -> None:
    net: Any = resnet("B")
    pattern = Channel(net, torch.randn(IMAGE), select_all(net))
    found = pattern.reading()
    inner = net.layer2[0].conv2.weight.detach()
    torch.testing.assert_close(found["layer2.0.conv1"][:, 1:], inner.movedim(1, 0).flatten(1))
    stream = [*(block.conv1 for block in net.layer2[1:]), net.layer3[0].conv1, net.layer3[0].shortcut[0]]
    expected = sum(layer.weight.detach().square().sum((0, 2, 3)) for layer in stream)
    torch.testing.assert_close(found["layer2.0.conv2"].square().sum(1), expected)
    flattened: Any = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 2))
    pattern = Channel(flattened, torch.randn(2, 3, 4, 4), select_all(flattened))
    torch.testing.assert_close(pattern.reading()["0"][:, 1:], flattened[2].weight.detach().T.reshape(4, -1))


def test_depthwise_filters_count_in_their_channels_score() -> None:
    net: Any = separable()
    expected = sum(net[i].weight.detach().abs().flatten(1).sum(1) for i in (0, 3))
    view = Channel(net, torch.randn(IMAGE), select_all(net)).view()
    torch.testing.assert_close(magnitude(view["0"]), expected)


def select_all(net: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def test_overall_ranks_across_groups() -> None:
    net: Any = flat()
    with torch.no_grad():
        net[3].weight.mul_(0.01)
        net[3].bias.mul_(0.01)
    _, _, compact = pruned(net, torch.randn(IMAGE), sparsity=0.25, allocation="overall")
    small: Any = compact.model
    assert (small[0].out_channels, small[3].out_channels, small[6].out_features) == (6, 2, 10)  # 6 of 24 go


def test_an_excluded_layer_keeps_its_channels() -> None:
    x = torch.randn(IMAGE)
    _, _, compact = pruned(lived(separable()), x, sparsity=0.5, exclude=["^3$"])
    small: Any = compact.model
    assert (small[0].out_channels, small[3].groups, small[6].out_channels) == (8, 8, 6)


@pytest.mark.parametrize(
    "inner",
    [
        nn.Sigmoid(),  # a zeroed channel is a half
        nn.BatchNorm2d(8, affine=False),  # no shift to mask
        nn.LayerNorm([8, 8, 8]),
        nn.GroupNorm(1, 8),
        Scale(),
        shuffle,  # into a fixed number of channels
        lambda x: x.softmax(1),
        lambda x: x.cumsum(1),  # an operation without a rule
        lambda x: x * x.mean(1, keepdim=True),
    ],
    ids=["sigmoid", "bare-norm", "layer-norm", "group-norm", "parameter", "shuffle", "softmax", "cumsum", "mean"],
)
def test_what_cannot_be_cut_stays_and_the_rest_goes(inner: Any) -> None:
    x = torch.randn(IMAGE)
    model, _, compact = pruned(lived(Between(inner)), x, sparsity=0.5)
    small: Any = compact.model
    assert (small.conv1.out_channels, small.conv2.out_channels) == (8, 3)
    torch.testing.assert_close(compact.model(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("inner", "read", "kept"),
    [
        (nn.GroupNorm(4, 8), 8, 4),
        (nn.InstanceNorm2d(8), 8, 4),
        (nn.PReLU(8), 8, 4),
        (nn.Conv2d(8, 16, 3, groups=8), 16, 8),  # two filters on each channel
        (nn.Conv2d(8, 12, 3, padding=1, groups=2), 12, 6),
        (lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), 8, 4),
        (nn.ConvTranspose2d(8, 12, 2, stride=2), 12, 6),
    ],
    ids=["group-norm", "instance-norm", "prelu", "multiplier", "grouped", "shuffle", "transposed"],
)
def test_what_lies_between_is_cut_too(inner: Any, read: int, kept: int, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(IMAGE)
    model, _, compact = pruned(lived(Between(inner, out=read)), x, sparsity=0.5)
    assert caplog.text == ""
    small: Any = compact.model
    assert (small.conv1.out_channels, small.conv2.in_channels, small.conv2.out_channels) == (4, kept, 3)
    torch.testing.assert_close(compact.model(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), lambda: nn.Conv2d(3, 8, 3)])
def test_nothing_that_may_go_is_an_error(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="channels that may go"):
        Prune(0.5, pattern="channel").attach(build(), torch.randn(IMAGE))


def test_only_part_of_a_residual_stream_selected_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"selected layers \(conv1\) has channels that may go"):
        Prune(0.5, pattern="channel", select="^conv1$").attach(resnet("B"), torch.randn(IMAGE))


def test_a_model_that_cannot_be_traced() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such luck")

    with pytest.raises(ValueError, match="could not trace the model: no such luck"):
        Prune(0.5, pattern="channel").attach(Broken(), torch.randn(IMAGE))


def test_attaching_leaves_the_model_and_the_random_generator_alone() -> None:
    model = lived(resnet("A"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    Prune(0.5, pattern="channel").attach(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    values = surgery.plain(model).state_dict()
    assert all(torch.equal(values[name], tensor) for name, tensor in before.items())


def test_unstructured_under_channel() -> None:
    x = torch.randn(IMAGE)
    compressor = Compressor([Prune(0.5, every=1), Prune(0.5, pattern="channel", every=1)])
    model = compressor.attach(lived(flat()), x)
    compressor.update(model)
    compact = compressor.finalize(model, x)
    torch.testing.assert_close(compact.model(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    small: Any = compact.model
    assert small[0].out_channels == 3
    assert (small[0].weight == 0).float().mean() > 0.2
