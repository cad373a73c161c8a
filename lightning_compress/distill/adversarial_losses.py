"""Losses on a discriminator's scores: `loss(scores, real) -> scalar`.

Scores, of shape [batch], are above zero for what is taken for the teacher's. The discriminator pays
`loss(teacher's, True) + loss(student's, False)`, the student `loss(student's, True)`.
"""

from torch import Tensor
from torch.nn import functional as F


def non_saturating(scores: Tensor, real: bool) -> Tensor:
    """Cross entropy of the sigmoid of the scores (Goodfellow 2014, arXiv 1406.2661), mean over the batch.

    A student that pays for not being taken for real learns where the discriminator wins; one that gains from being
    found out less often, as in the minimax form, does not.

    >>> import torch
    >>> round(float(non_saturating(torch.zeros(2), True)), 4)
    0.6931
    """
    return F.softplus(-scores if real else scores).mean()


def least_squares(scores: Tensor, real: bool) -> Tensor:
    """Half the squared distance to 1 if real, else to -1 (Mao 2017, arXiv 1611.04076), mean over the batch.

    >>> import torch
    >>> float(least_squares(torch.tensor([3.0]), True))
    2.0
    """
    return 0.5 * (scores - (1.0 if real else -1.0)).square().mean()
