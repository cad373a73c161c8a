"""The residual networks for ImageNet of He et al. 2016 with two convolutions a block."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.resnet_cifar import BasicBlock
from lightning_compress.models.width import scaled

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@final
class ResNetImageNet(nn.Module):
    """ResNet-18 or ResNet-34: a 7x7 convolution, pooling, and four stages of 64, 128, 256 and 512 channels.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, table 1, with
    1x1 convolutions where a block changes the shape ("option B"). Takes (B, in_channels, S, S), 224 pixels wide as
    published, gives logits (B, num_classes).

    Args:
        depth: 18 or 34.
        in_channels: channels of the image.
        num_classes: logits.
        width: factor on all channel counts, which stay multiples of 4.

    Raises:
        ValueError: when `depth` is neither 18 nor 34.

    >>> sum(p.numel() for p in ResNetImageNet(18, num_classes=1000).parameters())
    11689512
    """

    def __init__(self, depth: int, *, in_channels: int = 3, num_classes: int = 1000, width: float = 1.0) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _BLOCKS))}, got {depth}")
        channels = scaled(64, width, multiple=4)
        self.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = [nn.Sequential() for _ in range(4)]
        for stage, (layers, blocks) in enumerate(zip(stages, _BLOCKS[depth], strict=True)):
            outputs = scaled(64 * 2**stage, width, multiple=4)
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, outputs, stride=stride, shortcut="B"))
                channels = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, num_classes)."""
        features = self.maxpool(self.relu1(self.bn1(self.conv1(inputs))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(self.flatten(self.pool(features)))
        return logits
