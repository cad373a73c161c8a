"""DS-CNN: depthwise-separable convolutions over the time and frequency of a spoken word."""

from typing import Literal, final

from torch import Tensor, nn

from lightning_compress.models.width import scaled

# Channels, separable blocks, stride of the first convolution over frequencies, stride of the first block.
_SIZES = {"S": (64, 4, 2, 1), "M": (172, 4, 1, 2), "L": (276, 5, 1, 2)}


def _block(channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


@final
class DSCNN(nn.Module):
    """DS-CNN-S, M or L of Zhang et al., "Hello Edge", arXiv 1711.07128.

    A convolution of 10 frames by 4 bins, then separable 3x3 blocks, an average and a linear layer. For 49 frames of 10
    coefficients and 12 classes 2.66, 9.82 and 28.3 million multiply-accumulates. Takes (B, in_channels, frames, bins),
    gives logits (B, num_classes).

    Args:
        size: S, M or L.
        in_channels: 1 for sound.
        num_classes: logits.
        width: factor on the channel counts, which stay multiples of 4.

    Raises:
        ValueError: when there is no such size.

    >>> import torch
    >>> DSCNN("S", num_classes=12)(torch.zeros(2, 1, 49, 10)).shape
    torch.Size([2, 12])
    """

    def __init__(
        self, size: Literal["S", "M", "L"] = "S", *, in_channels: int = 1, num_classes: int = 10, width: float = 1.0
    ) -> None:
        super().__init__()
        if size not in _SIZES:
            raise ValueError(f"DSCNN has the sizes {', '.join(_SIZES)}, got {size!r}")
        published, blocks, stride, first = _SIZES[size]
        channels = scaled(published, width, multiple=4)
        # One more after than before, since the kernel is even: the output has size / stride places, rounded up.
        self.pad = nn.ZeroPad2d((1, 2, 4, 5))
        self.conv = nn.Conv2d(in_channels, channels, (10, 4), stride=(2, stride), bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(*(_block(channels, first if number == 0 else 1) for number in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map features (B, C, frames, bins) to logits (B, num_classes)."""
        features = self.blocks(self.relu(self.bn(self.conv(self.pad(inputs)))))
        logits: Tensor = self.fc(self.flatten(self.pool(features)))
        return logits
