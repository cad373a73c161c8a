"""How much each weight matters: `score(weight) -> Tensor` of the same shape, larger stays, zero or more.

A channel's score is the sum over its weights, so `magnitude` ranks channels by L1 norm and `squared` by L2.
"""

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Absolute value (Han 2015, arXiv 1506.02626; summed over a filter: Li 2017, arXiv 1608.08710).

    >>> import torch
    >>> magnitude(torch.tensor([-2.0, 1.0]))
    tensor([2., 1.])
    """
    return weight.abs()


def squared(weight: Tensor) -> Tensor:
    """Square: the same order as `magnitude` weight by weight, the L2 norm's order channel by channel.

    >>> import torch
    >>> squared(torch.tensor([-2.0, 1.0]))
    tensor([4., 1.])
    """
    return weight * weight
