"""A recurrent classifier of frames of sound."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled


@final
class GRUClassifier(nn.Module):
    """A GRU over the frames of a spoken word and a linear layer on its last state (Cho et al., arXiv 1406.1078).

    The default is GRU-S of Zhang et al., "Hello Edge", arXiv 1711.07128, for 25 frames of 10 coefficients. Takes
    (B, 1, frames, num_features), gives logits (B, num_classes).

    Args:
        units: size of the state.
        layers: GRUs on top of one another.
        num_features: bins of a frame.
        num_classes: logits.
        width: factor on `units`, which stay a multiple of 2.

    >>> import torch
    >>> GRUClassifier(num_features=10)(torch.zeros(2, 1, 25, 10)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        units: int = 154,
        layers: int = 1,
        *,
        num_features: int = 40,
        num_classes: int = 10,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        size = scaled(units, width, multiple=2)
        self.gru = nn.GRU(num_features, size, layers, batch_first=True)
        self.fc = nn.Linear(size, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map features (B, 1, frames, num_features) to logits (B, num_classes)."""
        states, _ = self.gru(inputs.flatten(1, 2))
        logits: Tensor = self.fc(states[:, -1])
        return logits
