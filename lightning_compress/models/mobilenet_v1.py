"""MobileNet, first version."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled

# Channels and stride of each separable convolution (arXiv 1704.04861, table 1).
_SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def _normalized(name: str, conv: nn.Conv2d) -> list[tuple[str, nn.Module]]:
    return [(f"{name}_conv", conv), (f"{name}_bn", nn.BatchNorm2d(conv.out_channels)), (f"{name}_relu", nn.ReLU())]


@final
class MobileNetV1(nn.Module):
    """A 3x3 convolution and 13 depthwise-separable ones, each with batch norm and ReLU.

    Howard et al., "MobileNets", arXiv 1704.04861. Takes (B, in_channels, S, S), 224 pixels wide as published, gives
    logits (B, num_classes).

    Args:
        in_channels: channels of the image.
        num_classes: logits.
        width: factor on all channel counts, which stay multiples of 4; the paper's 0.75, 0.5 and 0.25.

    >>> sum(p.numel() for p in MobileNetV1(num_classes=1000).parameters())
    4231976
    """

    def __init__(self, *, in_channels: int = 3, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(32, width, multiple=4)
        self.features = nn.Sequential()
        layers = _normalized("first", nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False))
        for number, (base, stride) in enumerate(_SEPARABLE, start=1):
            outputs = scaled(base, width, multiple=4)
            depthwise = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
            layers += _normalized(f"depthwise{number}", depthwise)
            layers += _normalized(f"pointwise{number}", nn.Conv2d(channels, outputs, 1, bias=False))
            channels = outputs
        for name, layer in layers:
            self.features.add_module(name, layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, num_classes)."""
        logits: Tensor = self.fc(self.flatten(self.pool(self.features(inputs))))
        return logits
