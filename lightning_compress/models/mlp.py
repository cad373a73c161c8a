"""Multilayer perceptrons on flattened inputs."""

from collections.abc import Sequence
from typing import final

from torch import nn

from lightning_compress.models.width import scaled


@final
class MLP(nn.Sequential):
    """Multilayer perceptron: flatten, then `fc1`, `relu1`, `fc2`, ... and a last linear layer.

    Takes inputs of shape (B, ...) with `in_features` values per sample, gives logits (B, num_classes).

    Args:
        widths: units of each hidden layer.
        in_features: values per sample after flattening.
        num_classes: logits.
        dropout: probability of dropping a hidden unit, 0 builds no dropout layer.
        input_dropout: the same for an input.

    >>> import torch
    >>> MLP([1200, 1200], in_features=784, num_classes=10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        widths: Sequence[int],
        in_features: int,
        num_classes: int,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        if input_dropout:
            self.dropout0 = nn.Dropout(input_dropout)
        sizes = [in_features, *widths]
        for i, (inputs, outputs) in enumerate(zip(sizes, widths, strict=False), start=1):
            self.add_module(f"fc{i}", nn.Linear(inputs, outputs))
            self.add_module(f"relu{i}", nn.ReLU())
            if dropout:
                self.add_module(f"dropout{i}", nn.Dropout(dropout))
        self.add_module(f"fc{len(sizes)}", nn.Linear(sizes[-1], num_classes))


def mlp(
    widths: Sequence[int],
    *,
    in_channels: int = 1,
    image_size: int = 28,
    num_classes: int = 10,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    width: float = 1.0,
) -> MLP:
    """Build an `MLP` for square images, its hidden layers scaled by `width`.

    `[1200, 1200]` and `[800, 800]` are teacher and student of Hinton, Vinyals and Dean, "Distilling the
    Knowledge in a Neural Network", arXiv 1503.02531.

    >>> sum(p.numel() for p in mlp([800, 800]).parameters())
    1276810
    """
    sizes = [scaled(w, width) for w in widths]
    return MLP(sizes, in_channels * image_size**2, num_classes, dropout, input_dropout)


def lenet_300_100(*, in_channels: int = 1, image_size: int = 28, num_classes: int = 10, width: float = 1.0) -> MLP:
    """Build LeNet-300-100, the perceptron of LeCun et al. 1998 that pruning papers start from.

    >>> sum(p.numel() for p in lenet_300_100().parameters())
    266610
    """
    return mlp([300, 100], in_channels=in_channels, image_size=image_size, num_classes=num_classes, width=width)
