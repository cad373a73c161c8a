"""VGG with batch norm for 32x32 images."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled

# Channels and convolutions of each stage.
_STAGES = {
    7: ((128, 2), (256, 2), (512, 2)),
    **{
        depth: tuple(zip((64, 128, 256, 512, 512), convs, strict=True))
        for depth, convs in {
            8: (1, 1, 1, 1, 1),
            11: (1, 1, 2, 2, 2),
            13: (2, 2, 2, 2, 2),
            16: (2, 2, 3, 3, 3),
            19: (2, 2, 4, 4, 4),
        }.items()
    },
}


@final
class VGGCIFAR(nn.Module):
    """VGG with batch norm: 3x3 convolutions numbered `conv1`, `conv2`, ... in stages with pooling behind each.

    Simonyan and Zisserman, arXiv 1409.1556, in the form of Li et al., "Pruning Filters for Efficient
    ConvNets", ICLR 2017, arXiv 1608.08710: one hidden linear layer of 512 with batch norm. Liu et al.,
    "Rethinking the Value of Network Pruning", arXiv 1810.05270, leave it out (`hidden=None`), and so do
    Tian et al., arXiv 1910.10699, who pool behind three of the five stages only. Depth 7 is the VGG-7 of the literature
    on few bits (as in Bayesian Bits, arXiv 2005.07093): three wider stages, whose maps are not averaged.
    Takes (B, in_channels, S, S), gives logits (B, num_classes).

    Args:
        depth: 7, 8, 11, 13, 16 or 19.
        in_channels: channels of the image.
        image_size: height and width of the image; a stage is pooled while more than one pixel is left.
        num_classes: logits.
        width: factor on all channel counts, which stay multiples of 4.
        hidden: units of the hidden linear layer at width 1, None for none.
        pooled: how many stages, from the first on, have pooling behind them.

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
        pooled: int = 5,
    ) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, _STAGES))}, got {depth}")
        self.features = nn.Sequential()
        inputs, size, index = in_channels, image_size, 0
        for stage, (channels, convs) in enumerate(_STAGES[depth], start=1):
            outputs = scaled(channels, width, multiple=4)
            for _ in range(convs):
                index += 1
                self.features.add_module(f"conv{index}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
                self.features.add_module(f"bn{index}", nn.BatchNorm2d(outputs))
                self.features.add_module(f"relu{index}", nn.ReLU())
                inputs = outputs
            if size > 1 and stage <= pooled:
                self.features.add_module(f"pool{stage}", nn.MaxPool2d(2))
                size //= 2
        self.pool = nn.Identity() if depth == 7 else nn.AdaptiveAvgPool2d(1)
        inputs *= size**2 if depth == 7 else 1
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
