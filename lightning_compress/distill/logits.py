"""Losses on logits: `loss(student, teacher, ...) -> scalar`, both of shape [batch, classes, ...].

The classes are the second dimension, as PyTorch's own cross entropy has it; tokens of a text or pixels, which follow,
are samples like any other, and the loss is the mean over all of them.

What else a loss needs it asks for by the names of its parameters: `temperature`, which softens the outputs, and
`targets` [batch, ...], the int64 labels. Further parameters have defaults and are its own options. A function of yours,
given by its dotted path, has the same form.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-8


def _rows(logits: Tensor) -> Tensor:
    """Logits [batch, classes, ...] as float32 rows [samples, classes]."""
    return logits.float().movedim(1, -1).flatten(0, -2)


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened outputs times T^2 (Hinton 2015, arXiv 1503.02531).

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(kl(logits, logits, 4.0))
    0.0
    """
    return kl_unscaled(student, teacher, temperature) * temperature**2


def kl_unscaled(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened outputs: its gradient shrinks as 1 / T^2.

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(4 * kl_unscaled(logits, logits.flip(1), 2.0)) == float(kl(logits, logits.flip(1), 2.0))
    True
    """
    log_student = F.log_softmax(_rows(student) / temperature, dim=1)
    log_teacher = F.log_softmax(_rows(teacher) / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened outputs times T^2: `kl` and the teacher's entropy, which has no gradient.

    >>> even = torch.zeros(1, 2)
    >>> round(float(soft_cross_entropy(even, even, 1.0)), 4)
    0.6931
    """
    soft = (_rows(teacher) / temperature).softmax(1)
    return F.cross_entropy(_rows(student) / temperature, soft) * temperature**2


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits (Ba 2014, arXiv 1312.6184).

    >>> float(mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]])))
    2.0
    """
    return F.mse_loss(student.float(), teacher.float())


def kl_standardized(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`kl` of logits brought to mean 0 and deviation 1, each sample's by itself (Sun 2024, arXiv 2403.01427).

    The student need not match the size of the teacher's logits, only what they say of the classes.

    >>> logits = torch.tensor([[1.0, 2.0, 4.0]])
    >>> abs(round(float(kl_standardized(10 * logits - 3, logits, 2.0)), 6))
    0.0
    """
    return kl(_standardized(_rows(student)), _standardized(_rows(teacher)), temperature)


def _standardized(logits: Tensor) -> Tensor:
    # Not the deviation itself, whose gradient is NaN where all logits are alike.
    return (logits - logits.mean(1, keepdim=True)) / (logits.var(1, keepdim=True) + 1e-7).sqrt()


def dkd(
    student: Tensor, teacher: Tensor, temperature: float, targets: Tensor, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """`kl` taken apart (Zhao 2022, arXiv 2203.08679): `alpha` times target or not, `beta` times which of the others.

    With `beta` of each sample what the teacher leaves to the other classes it would be `kl`. The paper's `beta` is
    between 0.5 and 10, by the pair.

    >>> logits, targets = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([2])
    >>> abs(round(float(dkd(logits + 1, logits, 4.0, targets)), 6))
    0.0
    """
    target_student, others_student = _apart(_rows(student) / temperature, targets.flatten())
    target_teacher, others_teacher = _apart(_rows(teacher) / temperature, targets.flatten())
    of_target = F.kl_div(target_student, target_teacher, reduction="batchmean", log_target=True)
    of_others = F.kl_div(others_student, others_teacher, reduction="batchmean", log_target=True)
    return (alpha * of_target + beta * of_others) * temperature**2


def _apart(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [batch, 2] of the target and of all else, and [batch, classes - 1] within all else."""
    is_target = F.one_hot(targets, logits.shape[1]).bool()
    others = logits[~is_target].view(len(logits), -1)
    both = torch.stack([logits[is_target], others.logsumexp(1)], dim=1)
    return both.log_softmax(1), others.log_softmax(1)


def dist(student: Tensor, teacher: Tensor, temperature: float, beta: float = 2.0, gamma: float = 2.0) -> Tensor:
    """What correlation of softened outputs lacks to 1, times T^2 (DIST: Huang 2022, arXiv 2205.10536).

    `beta` times that over the classes of each sample, the mean over samples, and `gamma` times that over the samples
    of each class, the mean over classes.

    >>> logits = torch.randn(5, 3)
    >>> abs(round(float(dist(logits + 1, logits, 4.0)), 4))
    0.0
    """
    p, q = (_rows(student) / temperature).softmax(1), (_rows(teacher) / temperature).softmax(1)
    between, within = 1.0 - _correlation(p, q).mean(), 1.0 - _correlation(p.T, q.T).mean()
    return (beta * between + gamma * within) * temperature**2


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of each row of `one` with that of `other`."""
    return F.cosine_similarity(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True), dim=1, eps=_TINY)
