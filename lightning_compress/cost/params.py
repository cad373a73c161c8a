"""Counts of parameters and of what is left of them."""

from collections.abc import Iterable

from torch import Tensor, nn


def num_params(model: nn.Module) -> int:
    """Count the values of all parameters, tied ones once, buffers not.

    >>> num_params(nn.Linear(4, 2))
    10
    """
    return sum(parameter.numel() for parameter in model.parameters())


def num_nonzeros(tensors: Iterable[Tensor]) -> int:
    """Count the values that are not exactly zero.

    >>> import torch
    >>> num_nonzeros([torch.eye(3), torch.zeros(2)])
    3
    """
    return sum(int(tensor.count_nonzero()) for tensor in tensors)
