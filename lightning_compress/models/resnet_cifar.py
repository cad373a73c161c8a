"""The residual networks for 32x32 images of He et al. 2016."""

from typing import Literal, final

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.models.width import scaled

Shortcut = Literal["A", "B"]


@final
class PadShortcut(nn.Module):
    """Parameter-free shortcut ("option A"): subsample in space, pad the channels with zeros on both sides.

    >>> import torch
    >>> PadShortcut(extra=4, stride=2)(torch.ones(1, 4, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra = extra
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + extra, ceil(H / stride), ceil(W / stride))."""
        before = self.extra // 2
        strided = inputs[:, :, :: self.stride, :: self.stride]
        return F.pad(strided, (0, 0, 0, 0, before, self.extra - before))


def _shortcut(in_channels: int, channels: int, stride: int, option: Shortcut) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(channels - in_channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut; ReLU after the sum."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        features = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(inputs)))))
        outputs: Tensor = self.relu2(features + self.shortcut(inputs))
        return outputs


def _stage(blocks: int, in_channels: int, channels: int, *, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride=stride, shortcut=shortcut)
    rest = (BasicBlock(channels, channels, stride=1, shortcut=shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


@final
class ResNetCIFAR(nn.Module):
    """ResNet of depth 6n + 2 in three stages of 16, 32 and 64 channels.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385,
    section 4.2. Takes (B, in_channels, S, S), gives logits (B, num_classes).

    Args:
        depth: 8, 14, 20, ..., 56, ..., 110.
        in_channels: channels of the image.
        num_classes: logits.
        width: factor on the channel counts, which stay multiples of 4.
        shortcut: "A" pads channels with zeros, as published; "B" is a 1x1 convolution with batch norm and
            lets channels of the residual stream be pruned.
        stem: channels of the first convolution, before `width`: 8 of them and a width of 4 are the x4 networks of Tian
            et al., arXiv 1910.10699, with stages of 64, 128 and 256 channels behind 32.

    Raises:
        ValueError: when `depth` is not 6n + 2 or `shortcut` is neither "A" nor "B".

    >>> sum(p.numel() for p in ResNetCIFAR(20).parameters())
    269722
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        width: float = 1.0,
        shortcut: Shortcut = "A",
        stem: int = 16,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            nearest = 6 * max(1, round((depth - 2) / 6)) + 2
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...), got {depth}; the nearest is {nearest}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be 'A' (zero padding) or 'B' (1x1 convolution), got {shortcut!r}")
        start, first, second, third = (scaled(channels, width, multiple=4) for channels in (stem, 16, 32, 64))
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, start, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(start)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(blocks, start, first, stride=1, shortcut=shortcut)
        self.layer2 = _stage(blocks, first, second, stride=2, shortcut=shortcut)
        self.layer3 = _stage(blocks, second, third, stride=2, shortcut=shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, num_classes)."""
        features = self.relu1(self.bn1(self.conv1(inputs)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(self.flatten(self.pool(features)))
        return logits
