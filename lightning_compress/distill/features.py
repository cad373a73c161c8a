"""Losses on features: `loss(student, teacher, ...) -> scalar`, both [batch, channels, rows, columns] of one module.

Where only channels count, [batch, features] will do, or [batch, positions, features] of texts. A loss over several
modules takes lists of them. What else it needs it asks for by the names of its parameters: `targets` [batch], the int64
labels; `index` [batch], the samples' places in the training set; `given` [batch, positions], bool, what is text and not
padding; and `margin` [channels], what the teacher's batch norm puts out where it is negative, on average. Further
parameters have defaults and are its own options. Adapters bring the student's features to the width of the teacher's
where the loss does not say that any will do.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.distill.adapters import same_size, takes


@takes(adapter="always")
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference (FitNets: Romero 2015, arXiv 1412.6550).

    >>> float(hint(torch.ones(2, 3), torch.zeros(2, 3)))
    1.0
    """
    return F.mse_loss(student.float(), teacher.float())


@takes(adapter="norm")
def hint_normalized(student: Tensor, teacher: Tensor) -> Tensor:
    """`hint` (FitNets, arXiv 1412.6550) behind an adapter with batch norm, which stays finite at a large weight.

    >>> float(hint_normalized(torch.ones(2, 3), torch.zeros(2, 3)))
    1.0
    """
    return hint(student, teacher)


@takes(adapter="never")
def attention(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of where channels are large, each sample's map of norm 1 (AT: arXiv 1612.03928).

    >>> float(attention(torch.ones(2, 3, 4, 4), 5 * torch.ones(2, 7, 4, 4)))
    0.0
    """
    one, other = (_attention(maps.float(), power) for maps in same_size(student, teacher))
    return (one - other).square().mean()


def _attention(maps: Tensor, power: float) -> Tensor:
    return F.normalize(torch.linalg.vector_norm(maps, power, dim=1).pow(power).flatten(1), dim=1)


@takes(adapter="never")
def neuron_selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """Maximum mean discrepancy between channels, as maps of norm 1, with the kernel (x y)^2 (NST: arXiv 1707.01219).

    >>> maps = torch.randn(2, 3, 4, 4)
    >>> abs(round(float(neuron_selectivity(maps, 2 * maps)), 6))
    0.0
    """
    one, other = (F.normalize(maps.float().flatten(2), dim=2) for maps in same_size(student, teacher))
    return _kernel(one, one) + _kernel(other, other) - 2.0 * _kernel(one, other)


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.mT).square().mean()


@takes(adapter="never")
def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the samples' products with each other, in rows of norm 1 (SP: arXiv 1907.09682).

    >>> maps = torch.randn(2, 3, 4, 4)
    >>> abs(round(float(similarity(maps, 2 * maps)), 6))
    0.0
    """
    return F.mse_loss(_products(student), _products(teacher))


def _products(features: Tensor) -> Tensor:
    rows = features.float().flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


@takes(several=True)
def flow(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of products of one layer's channels with the next one's (FSP: Yim, CVPR 2017).

    Over two layers or more; the sum over neighbours. The larger map of two neighbours is averaged to the smaller.

    >>> maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)]
    >>> float(flow(maps, maps))
    0.0
    """
    if len(student) < 2:
        raise ValueError("flow goes from one layer to the next: name two modules or more; got one")
    pairs = zip(itertools.pairwise(student), itertools.pairwise(teacher), strict=True)
    return torch.stack([F.mse_loss(_flow(*one), _flow(*other)) for one, other in pairs]).sum()


def _flow(first: Tensor, second: Tensor) -> Tensor:
    one, other = (maps.float().flatten(2) for maps in same_size(first, second))
    return one @ other.mT / one.shape[2]


@takes(adapter="norm")
def boundary(student: Tensor, teacher: Tensor, distance: float = 1.0) -> Tensor:
    """Squared distance to `distance` beyond zero on the teacher's side (AB: Heo 2019, arXiv 1811.03233).

    Of features before their ReLU; summed over each sample's.

    >>> float(boundary(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.1, -0.1]])))
    1.0
    """
    one, sides = student.float(), torch.where(teacher > 0, 1.0, -1.0)
    return (distance - one * sides).clamp_min(0.0).square().sum() / len(one)


@takes(adapter="norm")
def margin(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared difference but where student and teacher are both negative enough (OFD: Heo 2019, arXiv 1904.01866).

    Of the outputs of batch norms before a ReLU; summed over each sample's. Below `margin` the teacher counts as it.

    >>> float(margin(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, -1.0]]), torch.tensor([-0.5, -0.5])))
    4.0
    """
    one, other = student.float(), torch.maximum(teacher.float(), margin.view(-1, *[1] * (teacher.dim() - 2)))
    counts = (one > other) | (other > 0)
    found: Tensor = ((one - other).square() * counts).sum() / len(one)
    return found


def cosine(student: Tensor, teacher: Tensor, given: Tensor) -> Tensor:
    """1 - cosine of hidden states [batch, positions, features], on average over texts (DistilBERT: arXiv 1910.01108).

    >>> states = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    >>> cosine(states, torch.tensor([[[0.0, 2.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
    tensor(0.2000)
    """
    away = 1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (away * given).sum() / given.sum()


def patience(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the first positions' states, of norm 1 (Patient KD: Sun 2019, arXiv 1908.09355).

    Of [batch, positions, features] where the first token stands for the text. The paper's sum over features is this
    times their number.

    >>> float(patience(torch.tensor([[[5.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 2.0], [7.0, 7.0]]])))
    1.0
    """
    one, other = (F.normalize(states[:, 0].float(), dim=1) for states in (student, teacher))
    return F.mse_loss(one, other)


@takes(adapter="never")
def attention_scores(student: Tensor, teacher: Tensor, given: Tensor) -> Tensor:
    """Mean squared difference of scores [batch, heads, positions, positions] before the softmax, within texts.

    TinyBERT: Jiao et al. 2020, arXiv 1909.10351. Student and teacher need as many heads.

    >>> scores = torch.tensor([[[[3.0, 9.0], [9.0, 9.0]]]])
    >>> float(attention_scores(scores, torch.ones(1, 1, 2, 2), torch.tensor([[True, False]])))
    4.0
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected as many heads of the student as of the teacher, {teacher.shape[1]}")
    within = given[:, None, :, None] & given[:, None, None]
    squares = (student.float() - teacher.float()).square() * within
    found: Tensor = squares.sum() / (within.sum() * student.shape[1])
    return found
