"""How a running range takes in what a batch showed: `observe(range, seen) -> range`, tensors of shape [layers, 2]."""

import torch
from torch import Tensor


def min_max(running: Tensor, seen: Tensor, momentum: float) -> Tensor:
    """The widest range so far; `momentum` is not used.

    >>> min_max(torch.tensor([[-1.0, 1.0]]), torch.tensor([[-0.5, 2.0]]), 0.9)
    tensor([[-1.,  2.]])
    """
    return torch.stack([torch.minimum(running[:, 0], seen[:, 0]), torch.maximum(running[:, 1], seen[:, 1])], dim=1)


def moving_average(running: Tensor, seen: Tensor, momentum: float) -> Tensor:
    """Exponential moving average: `momentum * running + (1 - momentum) * seen`.

    >>> moving_average(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]), 0.5)
    tensor([[0.0000, 1.5000]])
    """
    return torch.lerp(running, seen, 1.0 - momentum)
