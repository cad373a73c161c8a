"""Losses on how samples lie to each other: `loss(student, teacher) -> scalar`, both [batch, ...] of any width.

Anything of a sample behind the batch axis is one row. Further parameters have defaults and are options.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.distill.adapters import takes

_TINY = 1e-7


@takes(adapter="never")
def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of the distances of all pairs, each in units of their mean (RKD-D: Park 2019, arXiv 1904.05068).

    >>> rows = torch.randn(4, 3)
    >>> abs(round(float(distance(2 * rows, rows)), 6))
    0.0
    """
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def _distances(features: Tensor) -> Tensor:
    found: Tensor = F.pdist(features.float().flatten(1).contiguous())
    return found / found.mean().clamp_min(_TINY)


@takes(adapter="never")
def angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss of the cosines of the angles of all triples (RKD-A: Park 2019, arXiv 1904.05068).

    >>> rows = torch.randn(4, 3)
    >>> abs(round(float(angle(2 * rows, rows)), 6))
    0.0
    """
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _angles(features: Tensor) -> Tensor:
    rows = features.float().flatten(1)
    apart = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), dim=2)
    return apart @ apart.mT


@takes(adapter="never")
def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of how near each sample is to each other, by cosines (Passalis 2018, arXiv 1803.10837).

    The mean over all pairs.

    >>> rows = torch.randn(4, 3)
    >>> abs(round(float(pkt(2 * rows, rows)), 6))
    0.0
    """
    one, other = _nearness(student), _nearness(teacher)
    return (other * ((other + _TINY) / (one + _TINY)).log()).mean()


def _nearness(features: Tensor) -> Tensor:
    near = (_cosines(features) + 1.0) / 2.0
    return near / near.sum(1, keepdim=True)


def _cosines(features: Tensor) -> Tensor:
    rows = F.normalize(features.float().flatten(1), dim=1)
    return rows @ rows.T


@takes(adapter="never")
def correlation(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Mean squared difference of the samples' Gaussian kernels of rows of norm 1 (CC: Peng 2019, arXiv 1904.01802).

    The kernel exp(-gamma |x - y|^2) by its Taylor series up to `order`, as in the paper.

    >>> rows = torch.randn(4, 3)
    >>> abs(round(float(correlation(2 * rows, rows)), 6))
    0.0
    """
    return F.mse_loss(_kernel(student, gamma, order), _kernel(teacher, gamma, order))


def _kernel(features: Tensor, gamma: float, order: int) -> Tensor:
    cosines = _cosines(features)
    powers = [(2.0 * gamma) ** power / math.factorial(power) * cosines**power for power in range(order + 1)]
    return math.exp(-2.0 * gamma) * torch.stack(powers).sum(0)
