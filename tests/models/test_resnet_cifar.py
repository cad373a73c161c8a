import pytest
import torch
from torch import nn

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.resnet_cifar import PadShortcut, ResNetCIFAR


def closed_form(n: int) -> int:
    convs = 27 * 16 + 9 * (2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    batch_norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    return convs + batch_norms + 64 * 10 + 10


@pytest.mark.parametrize(
    ("depth", "params", "millions"),
    [
        (8, 75_290, 0.08),
        (14, 172_506, 0.17),
        (26, 366_938, 0.37),
        (20, 269_722, 0.27),
        (32, 464_154, 0.46),
        (44, 658_586, 0.66),
        (56, 853_018, 0.85),
        (110, 1_727_962, 1.73),
    ],
)
def test_published_sizes(depth: int, params: int, millions: float) -> None:
    assert num_params(ResNetCIFAR(depth)) == closed_form((depth - 2) // 6) == params
    assert round(params / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("depth", "millions"), [(8, 12.2), (14, 26.4), (20, 40.6), (26, 54.7), (56, 125.5), (110, 252.9)]
)
def test_published_macs(depth: int, millions: float) -> None:
    count = sum(macs(ResNetCIFAR(depth), torch.zeros(1, 3, 32, 32)).values())
    assert round(count / 1e6, 1) == millions


def test_projection_shortcut_adds_two_convolutions_with_batch_norm() -> None:
    extra = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert num_params(ResNetCIFAR(20, shortcut="B")) == 269_722 + extra
    names = [name for name, module in ResNetCIFAR(20, shortcut="B").named_modules() if name.endswith("shortcut.0")]
    assert names == ["layer2.0.shortcut.0", "layer3.0.shortcut.0"]


@pytest.mark.parametrize(("depth", "params"), [(8, 1_233_540), (32, 7_433_860)])
def test_x4_has_twice_the_channels_first_and_four_times_in_each_stage(depth: int, params: int) -> None:
    net = ResNetCIFAR(depth, num_classes=100, stem=8, width=4.0, shortcut="B")
    blocks = [net.get_submodule(f"layer{stage}.0.conv1") for stage in (1, 2, 3)]
    shapes = [(block.in_channels, block.out_channels) for block in blocks if isinstance(block, nn.Conv2d)]
    assert shapes == [(32, 64), (64, 128), (128, 256)]
    assert num_params(net) == params


def test_pad_shortcut_keeps_the_middle_channels_and_every_second_pixel() -> None:
    inputs = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    outputs = PadShortcut(extra=2, stride=2)(inputs)
    assert outputs[0, 1].tolist() == [[0, 2], [8, 10]]
    assert outputs[0, 2].tolist() == [[16, 18], [24, 26]]
    assert outputs[0, 0].count_nonzero() == outputs[0, 3].count_nonzero() == 0


@pytest.mark.parametrize("width", [0.1, 0.25, 1, 1.3, 2])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_width_scales_every_stage(width: float, shortcut: str) -> None:
    net = ResNetCIFAR(8, width=width, shortcut=shortcut)  # type: ignore[arg-type]
    channels = {module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)}
    assert all(count % 4 == 0 for count in channels)
    assert max(channels) == pytest.approx(64 * width, abs=2)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_no_relu_is_called_twice() -> None:
    calls: list[nn.Module] = []
    net = ResNetCIFAR(14).eval()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda layer, _args, _out: calls.append(layer))
    net(torch.zeros(1, 3, 8, 8))
    assert len(calls) == len(set(calls)) == 13


def test_refuses_depths_and_shortcuts_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2 .* got 18; the nearest is 20"):
        ResNetCIFAR(18)
    with pytest.raises(ValueError, match="got 2; the nearest is 8"):
        ResNetCIFAR(2)
    with pytest.raises(ValueError, match="shortcut must be 'A'"):
        ResNetCIFAR(8, shortcut="C")  # type: ignore[arg-type]
