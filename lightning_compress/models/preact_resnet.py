"""Residual networks for 32x32 images that normalize and activate before each convolution, narrow and wide."""

from typing import Literal, final

from torch import Tensor, nn

from lightning_compress.models.resnet_cifar import PadShortcut
from lightning_compress.models.width import scaled

Shortcut = Literal["pool", "conv"]


@final
class PreActBlock(nn.Module):
    """Twice batch norm, ReLU and a 3x3 convolution around a shortcut, and nothing after the sum.

    A shortcut of the kind "pool" takes the mean of 2x2 pixels, where the block has a stride, and pads the channels with
    zeros; "conv" is a 1x1 convolution of the inputs as normalized and activated for the first convolution.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        changes = stride > 1 or in_channels != channels
        self._of_activated = changes and shortcut == "conv"
        if self._of_activated:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        elif changes:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), PadShortcut(channels - in_channels, stride=1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(inputs))
        features = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        outputs: Tensor = features + self.shortcut(activated if self._of_activated else inputs)
        return outputs


@final
class PreActResNet(nn.Module):
    """ResNet with pre-activation in three stages of 16, 32 and 64 channels times `widen`.

    He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv 1603.05027, of depth 6n + 2;
    wide residual networks of Zagoruyko and Komodakis, BMVC 2016, arXiv 1605.07146, of depth 6n + 4 as they count, have
    shortcuts of the kind "conv". Takes (B, in_channels, S, S), gives logits (B, num_classes).

    Args:
        depth: 6n + 2 or 6n + 4, for n blocks in a stage.
        widen: factor on the channels of the three stages, not on the first convolution's.
        in_channels: channels of the image.
        num_classes: logits.
        width: factor on all channel counts, which stay multiples of 4.
        shortcut: "pool" or "conv", where a block changes the shape; see `PreActBlock`.

    Raises:
        ValueError: when `depth` is neither, `widen` is below 1 or `shortcut` is neither "pool" nor "conv".

    >>> sum(p.numel() for p in PreActResNet(16, widen=2, shortcut="conv").parameters())
    691674
    """

    def __init__(
        self,
        depth: int,
        *,
        widen: int = 1,
        in_channels: int = 3,
        num_classes: int = 10,
        width: float = 1.0,
        shortcut: Shortcut = "pool",
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 not in (2, 4):
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...) or 6n + 4 (10, 16, 22, ...), got {depth}")
        if shortcut not in ("pool", "conv"):
            raise ValueError(
                f"shortcut must be 'pool' (averaged and padded) or 'conv' (1x1 convolution), got {shortcut!r}"
            )
        if widen < 1:
            raise ValueError(f"widen must be 1 or more, got {widen}; for fewer channels everywhere set width")
        blocks = (depth - 2) // 6
        channels = scaled(16, width, multiple=4)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        stages = [nn.Sequential() for _ in range(3)]
        for stage, layers in enumerate(stages):
            outputs = scaled(16 * 2**stage * widen, width, multiple=4)
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActBlock(channels, outputs, stride=stride, shortcut=shortcut))
                channels = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, num_classes)."""
        features = self.layer3(self.layer2(self.layer1(self.conv1(inputs))))
        logits: Tensor = self.fc(self.flatten(self.pool(self.relu(self.bn(features)))))
        return logits
