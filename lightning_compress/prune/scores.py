"""How much each unit matters: `score(weight, ...) -> Tensor` [units], larger stays.

`weight` is [units, size]: the masked weights of each single weight, block, row or channel (of a channel: the filters of
every layer that writes it). What else a score needs it asks for by the names of its parameters, which
`prune/evidence.py` explains: `gradient`, `squared_gradient`, `hessian_gradient`, `hessian` and `movement` of the shape
of `weight`; `squared_change` [units, 1]; of channels also `features` [units, samples, rows, columns], `norm` [units,
norms] and `reading` [units, ...]. A function of yours, given by its dotted path, has the same form.
"""

import torch
from torch import Tensor

_MOST_PAIRS = 10_000


def magnitude(weight: Tensor) -> Tensor:
    """L1 norm (single weights: Han 2015, arXiv 1506.02626; filters: Li 2017, arXiv 1608.08710).

    >>> magnitude(torch.tensor([[-2.0, 1.0], [0.5, 0.0]]))
    tensor([3.0000, 0.5000])
    """
    found: Tensor = torch.linalg.vector_norm(weight, 1, dim=1)
    return found


def squared(weight: Tensor) -> Tensor:
    """Square of the L2 norm.

    >>> squared(torch.tensor([[-2.0, 1.0], [0.5, 0.0]]))
    tensor([5.0000, 0.2500])
    """
    return weight.square().sum(1)


def group(weight: Tensor, reading: Tensor) -> Tensor:
    """Square of the L2 norm of a channel in all layers that write or read it (Fang 2023, arXiv 2301.12900).

    >>> group(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
    tensor([14.])
    """
    return weight.square().sum(1) + reading.square().sum(1)


def lamp(weight: Tensor) -> Tensor:
    """Square of the norm by the sum of those of its layer that are as large or larger (Lee 2021, arXiv 2010.07611).

    It makes `allocation="overall"` fair to small layers: the largest of each layer has a score of 1.

    >>> lamp(torch.tensor([[2.0], [-1.0], [1.0]]))
    tensor([1.0000, 0.2000, 0.1667])
    """
    energy, order = weight.square().sum(1).sort(descending=True, stable=True)
    found = torch.empty_like(energy)
    found[order] = energy / energy.cumsum(0).clamp_min(torch.finfo(energy.dtype).tiny)
    return found


def fpgm(weight: Tensor) -> Tensor:
    """Sum of distances to the layer's other units: the one nearest to all can be spared (He 2019, arXiv 1811.00250).

    Raises:
        ValueError: more than 10,000 units, which make too many pairs.

    >>> fpgm(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
    tensor([6.0000, 9.2426, 5.2426])
    """
    if len(weight) > _MOST_PAIRS:
        raise ValueError(
            f"Prune: score 'fpgm' measures the distance of every two units, and a layer has {len(weight)}; "
            "write pattern=channel or row, or another score"
        )
    return torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def random(weight: Tensor) -> Tensor:
    """A draw from [0, 1) by torch's global generator, whose state is in checkpoints.

    >>> random(torch.ones(3, 2)).shape
    torch.Size([3])
    """
    return torch.rand(len(weight), device=weight.device)


def gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """L1 norm of the loss's gradient: what RigL gives back first (Evci 2020, arXiv 1911.11134).

    >>> gradient(torch.ones(2, 2), torch.tensor([[-2.0, 1.0], [0.5, 0.0]]))
    tensor([3.0000, 0.5000])
    """
    return magnitude(gradient)


def snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """Size of what the loss would change by, entry by entry, to first order: |w g| (Lee 2019, arXiv 1810.02340).

    >>> snip(torch.tensor([[-2.0, 1.0]]), torch.tensor([[0.5, 3.0]]))
    tensor([4.])
    """
    return (weight * gradient).abs().sum(1)


def taylor(weight: Tensor, squared_change: Tensor) -> Tensor:
    """Square of what a batch's loss changes by without the unit, to first order (Molchanov 2019, arXiv 1906.10771).

    >>> taylor(torch.ones(1, 2), torch.tensor([[4.0]]))
    tensor([4.])
    """
    return squared_change[:, 0]


def grasp(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    """How much the gradient's norm would lose without the unit: w H g, negative where it would gain.

    What stays keeps the gradient flowing. The paper writes it -w H g and removes the highest (Wang 2020, arXiv
    2002.07376, equation 8 and algorithm 1).

    >>> grasp(torch.tensor([[-2.0, 1.0]]), torch.tensor([[0.5, 3.0]]))
    tensor([2.])
    """
    return (weight * hessian_gradient).sum(1)


def movement(weight: Tensor, movement: Tensor) -> Tensor:
    """How far training has pushed the unit from zero: the sum of -w g over its steps (Sanh 2020, arXiv 2005.07683).

    Negative where it was pushed towards zero. Masks had better begin to move after some steps.

    >>> float(movement(torch.tensor([[5.0, 1.0]]), torch.tensor([[0.5, -2.0]])))
    -1.5
    """
    return movement.sum(1)


def fisher(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """What the loss would gain without the unit, by the diagonal of the empirical Fisher matrix: g^2 w^2 / 2.

    The squares are of the gradients of whole batches (Theis 2018, arXiv 1801.05787, takes those of single samples).

    >>> fisher(torch.tensor([[-2.0, 1.0]]), torch.tensor([[0.5, 3.0]]))
    tensor([2.5000])
    """
    return 0.5 * (squared_gradient * weight.square()).sum(1)


def obd(weight: Tensor, hessian: Tensor) -> Tensor:
    """What the loss would gain without the unit, by the Hessian's diagonal: h w^2 / 2 (OBD: LeCun 1989).

    >>> obd(torch.tensor([[-2.0, 1.0]]), torch.tensor([[0.5, -3.0]]))
    tensor([-0.5000])
    """
    return 0.5 * (hessian * weight.square()).sum(1)


def batchnorm(weight: Tensor, norm: Tensor) -> Tensor:
    """Absolute scale of the channel's batch norm, the sum over all it has (slimming: Liu 2017, arXiv 1708.06519).

    >>> batchnorm(torch.ones(2, 9), torch.tensor([[-0.5], [0.25]]))
    tensor([0.5000, 0.2500])
    """
    return norm.abs().sum(1)


def hrank(weight: Tensor, features: Tensor) -> Tensor:
    """Mean rank of the channel's feature maps over samples (Lin 2020, arXiv 2002.10179).

    Before a linear layer a map is seen as one row, whose rank is 1 unless it is zero.

    >>> maps = torch.stack([torch.eye(3), torch.ones(3, 3)]).unsqueeze(1)
    >>> hrank(torch.ones(2, 1), maps)
    tensor([3., 1.])
    """
    ranks: Tensor = torch.linalg.matrix_rank(features.float())
    return ranks.float().mean(1)


def apoz(weight: Tensor, features: Tensor) -> Tensor:
    """Share of the channel's outputs that are not zero: 1 - APoZ (Hu 2016, arXiv 1607.03250).

    >>> apoz(torch.ones(2, 1), torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 3.0]]).view(2, 4, 1, 1))
    tensor([0.5000, 0.2500])
    """
    return (features != 0).float().mean((1, 2, 3))
