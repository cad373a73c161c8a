"""Losses on logits: `loss(student, teacher, temperature) -> scalar`, both of shape [batch, classes]."""

from torch import Tensor
from torch.nn import functional as F


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened outputs times T^2 (Hinton 2015, arXiv 1503.02531), mean over the batch.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(kl(logits, logits, 4.0))
    0.0
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
