"""VGG with batch norm for 32x32 images."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled

_CHANNELS = (64, 128, 256, 512, 512)
_CONVS_PER_STAGE = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@final
class VGGCIFAR(nn.Module):
    """VGG with batch norm: 3x3 convolutions numbered `conv1`, `conv2`, ... with pooling between five stages.

    Simonyan and Zisserman, arXiv 1409.1556, in the form of Li et al., "Pruning Filters for Efficient
    ConvNets", ICLR 2017, arXiv 1608.08710: one hidden linear layer of 512 with batch norm. Liu et al.,
    "Rethinking the Value of Network Pruning", arXiv 1810.05270, leave it out (`hidden=None`).
    Takes (B, in_channels, S, S), gives logits (B, num_classes).

    Args:
        depth: 11, 13, 16 or 19.
        in_channels: channels of the image.
        image_size: height and width of the image; a stage is pooled while more than one pixel is left.
        num_classes: logits.
        width: factor on all channel counts, which stay multiples of 4.
        hidden: units of the hidden linear layer at width 1, None for none.

    Raises:
        ValueError: when `depth` is unknown.

    >>> sum(p.numel() for p in VGGCIFAR(16).parameters())
    14987722
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 10,
        width: float = 1.0,
        hidden: int | None = 512,
    ) -> None:
        super().__init__()
        if depth not in _CONVS_PER_STAGE:
            raise ValueError(f"depth must be one of {', '.join(map(str, _CONVS_PER_STAGE))}, got {depth}")
        self.features = nn.Sequential()
        inputs, size, index = in_channels, image_size, 0
        for stage, (channels, convs) in enumerate(zip(_CHANNELS, _CONVS_PER_STAGE[depth], strict=True), start=1):
            outputs = scaled(channels, width, multiple=4)
            for _ in range(convs):
                index += 1
                self.features.add_module(f"conv{index}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
                self.features.add_module(f"bn{index}", nn.BatchNorm2d(outputs))
                self.features.add_module(f"relu{index}", nn.ReLU())
                inputs = outputs
            if size > 1:
                self.features.add_module(f"pool{stage}", nn.MaxPool2d(2))
                size //= 2
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential()
        if hidden is not None:
            units = scaled(hidden, width, multiple=4)
            self.classifier.add_module("fc1", nn.Linear(inputs, units))
            self.classifier.add_module("bn1", nn.BatchNorm1d(units))
            self.classifier.add_module("relu1", nn.ReLU())
            inputs = units
        self.classifier.add_module("fc", nn.Linear(inputs, num_classes))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(inputs))))
        return logits
