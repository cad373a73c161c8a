"""A small plain convnet for small images."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled


def _block(in_channels: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


@final
class SmallConv(nn.Module):
    """Three 3x3 convolutions of 16, 32 and 64 channels with batch norm and ReLU, pooled once, then linear.

    On 8x8 images with one channel: 378 thousand MACs and 24 thousand parameters. Takes (B, in_channels, S, S)
    with S >= 2, gives logits (B, num_classes).

    Args:
        in_channels: channels of the image.
        num_classes: logits.
        width: factor on the channel counts, which stay multiples of 4.

    >>> import torch
    >>> SmallConv()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = (scaled(channels, width, multiple=4) for channels in (16, 32, 64))
        self.conv1, self.bn1, self.relu1 = _block(in_channels, first)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2, self.bn2, self.relu2 = _block(first, second)
        self.conv3, self.bn3, self.relu3 = _block(second, third)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(third, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, num_classes)."""
        features = self.pool1(self.relu1(self.bn1(self.conv1(inputs))))
        features = self.relu2(self.bn2(self.conv2(features)))
        features = self.relu3(self.bn3(self.conv3(features)))
        logits: Tensor = self.fc(self.flatten(self.pool(features)))
        return logits
