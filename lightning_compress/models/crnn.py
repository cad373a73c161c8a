"""A convolution whose frames recurrent layers read."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled


@final
class CRNN(nn.Module):
    """A convolution with stride 2, GRUs over its frames, a hidden linear layer and another on the last state.

    The default is CRNN-S of Zhang et al., "Hello Edge", arXiv 1711.07128 (after Arik et al., arXiv 1703.05390). Takes
    (B, in_channels, frames, num_features) with 10 frames and 4 features or more, gives logits (B, num_classes).

    Args:
        channels: of the convolution, 10 frames by 4 bins.
        units: size of the GRUs' state.
        layers: GRUs on top of one another.
        hidden: units of the hidden linear layer.
        num_features: bins of a frame.
        in_channels: 1 for sound.
        num_classes: logits.
        width: factor on `channels`, `units` and `hidden`, which stay multiples of 4.

    >>> import torch
    >>> CRNN(num_features=10)(torch.zeros(2, 1, 49, 10)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int = 48,
        units: int = 60,
        *,
        layers: int = 2,
        hidden: int = 84,
        num_features: int = 40,
        in_channels: int = 1,
        num_classes: int = 10,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        maps, size, wide = (scaled(count, width, multiple=4) for count in (channels, units, hidden))
        self.conv = nn.Conv2d(in_channels, maps, (10, 4), stride=2, bias=False)
        self.bn = nn.BatchNorm2d(maps)
        self.relu = nn.ReLU()
        self.gru = nn.GRU(maps * ((num_features - 4) // 2 + 1), size, layers, batch_first=True)
        self.fc1 = nn.Linear(size, wide)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(wide, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map features (B, C, frames, num_features) to logits (B, num_classes)."""
        features = self.relu(self.bn(self.conv(inputs)))
        states, _ = self.gru(features.permute(0, 2, 1, 3).flatten(2))
        logits: Tensor = self.fc2(self.relu1(self.fc1(states[:, -1])))
        return logits
