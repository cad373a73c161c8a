"""LeNet-5 in the widths of the Caffe example, which the pruning literature means by the name."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled

_KERNEL = 5


@final
class LeNet5(nn.Module):
    """LeNet-5: two 5x5 convolutions, each with ReLU and 2x2 max pooling, then two linear layers.

    Caffe's widths 20-50-500 are those of Han et al., "Learning both Weights and Connections", arXiv 1506.02626;
    32-64-512 those of van Baalen et al., "Bayesian Bits", arXiv 2005.07093. Takes (B, in_channels, S, S),
    gives logits (B, num_classes).

    Args:
        widths: channels of both convolutions and units of the hidden linear layer at width 1.
        in_channels: channels of the image.
        image_size: height and width of the image, at least 16.
        num_classes: logits.
        width: factor on `widths`.

    Raises:
        ValueError: when the image is too small for two valid 5x5 convolutions with pooling.

    >>> sum(p.numel() for p in LeNet5().parameters())
    431080
    """

    def __init__(
        self,
        widths: tuple[int, int, int] = (20, 50, 500),
        *,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        size = ((image_size - _KERNEL + 1) // 2 - _KERNEL + 1) // 2
        if size < 1:
            raise ValueError(
                f"LeNet5 needs image_size >= 16, got {image_size}; SmallConv takes smaller images (model=small_conv)"
            )
        first, second, hidden = (scaled(w, width) for w in widths)
        self.conv1 = nn.Conv2d(in_channels, first, _KERNEL)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, _KERNEL)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(second * size**2, hidden)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (B, C, S, S) to logits (B, num_classes)."""
        features = self.pool1(self.relu1(self.conv1(inputs)))
        features = self.pool2(self.relu2(self.conv2(features)))
        logits: Tensor = self.fc2(self.relu3(self.fc1(self.flatten(features))))
        return logits
