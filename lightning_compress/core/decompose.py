"""Weights for the other forms of a layer (forms.py), from the weight that it has: the nearest ones in least squares.

Everything is computed in float64 on the CPU, so that a run that is resumed finds the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import recurrent
from lightning_compress.core.forms import weight_of

# Alternating least squares ends where a step takes off less than this share of what is lost.
_MOST_STEPS, _GAIN = 200, 1e-4
_HOLD, _TINY = 1e-9, 1e-300


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """The matrix whose rows are the slices of `tensor` along `mode`.

    >>> unfold(torch.arange(4).view(2, 2), 1)
    tensor([[0, 2],
            [1, 3]])
    """
    return tensor.movedim(mode, 0).flatten(1)


def _halves(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best left [rows, rank] and right [rank, columns] factor, each with the root of the singular values."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def svd(weight: Tensor, rank: int) -> list[Tensor]:
    """Factors [rank, in, ...] and [out, rank, 1 ...] of a weight [out, in, ...].

    >>> first, second = svd(torch.eye(3, dtype=torch.float64), 3)
    >>> bool(torch.allclose(second @ first, torch.eye(3, dtype=torch.float64)))
    True
    """
    left, right = _halves(weight.flatten(1), rank)
    return [right.view(rank, *weight.shape[1:]), left.view(*left.shape, *[1] * (weight.dim() - 2))]


def spatial(weight: Tensor, rank: int) -> list[Tensor]:
    """Factors [rank, in, 1, kw] and [out, rank, kh, 1] of a kernel [out, in, kh, kw]."""
    outputs, inputs, height, width = weight.shape
    left, right = _halves(weight.permute(0, 2, 1, 3).reshape(outputs * height, inputs * width), rank)
    down = left.view(outputs, height, rank).transpose(1, 2)
    return [right.view(rank, inputs, 1, width), down.reshape(outputs, rank, height, 1)]


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The left singular vectors of the largest singular values; from the product, as matrices here are wide."""
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T).eigenvectors
    return vectors.flip(1)[:, :rank]


def tucker(weight: Tensor, first: int, second: int, steps: int = 10) -> list[Tensor]:
    """Factors [first, in, 1, 1], [second, first, kh, kw] and [out, second, 1, 1] of a kernel [out, in, kh, kw].

    Higher-order orthogonal iteration from the higher-order SVD (De Lathauwer et al., doi 10.1137/S0895479898346995).
    """
    into = _leading(unfold(weight, 1), first)
    outof = _leading(unfold(weight, 0), second)
    for _ in range(steps):
        outof = _leading(unfold(torch.einsum("oihw,ir->orhw", weight, into), 0), second)
        into = _leading(unfold(torch.einsum("oihw,os->sihw", weight, outof), 1), first)
    core = torch.einsum("oihw,os,ir->srhw", weight, outof, into)
    return [into.T[:, :, None, None], core, outof[:, :, None, None]]


def cp_factors(tensor: Tensor, rank: int) -> list[Tensor]:
    """One factor [size, rank] for each dimension of `tensor`, whose outer products add up to nearly it.

    Alternating least squares from the leading singular vectors of each unfolding; where there are fewer than `rank`,
    the others are drawn from a fixed seed. Columns of all factors have equal norms.
    """
    draw = torch.Generator().manual_seed(0)
    factors = []
    for mode, size in enumerate(tensor.shape):
        leading = _leading(unfold(tensor, mode), rank)
        more = torch.randn(size, rank - leading.shape[1], generator=draw, dtype=tensor.dtype)
        factors.append(torch.cat([leading, more / max(1.0, size**0.5)], dim=1))
    before, energy = torch.inf, tensor.square().sum()
    for _ in range(_MOST_STEPS):
        for mode in range(tensor.dim()):
            right, gram = _improve(tensor, factors, mode)
        last = factors[-1]
        error = float(energy - 2 * (right * last).sum() + (gram * (last.T @ last)).sum())
        if error >= (1.0 - _GAIN) * before:
            break
        before = error
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    even = norms.prod(0) ** (1 / len(factors))
    return [factor * (even / norm.clamp_min(_TINY)) for factor, norm in zip(factors, norms, strict=True)]


def _improve(tensor: Tensor, factors: list[Tensor], mode: int) -> tuple[Tensor, Tensor]:
    """Make the factor of `mode` the best one given the others, in place; the normal equations it solves.

    The others' columns get norm 1. Columns that all but cancel each other would grow without bounds, so the solution
    is held near the factor as it was.
    """
    others = []
    for place, factor in enumerate(factors):
        if place != mode:
            norm = factor.norm(dim=0).clamp_min(_TINY)
            factors[place], factors[mode] = factor / norm, factors[mode] * norm
            others.append(factors[place])
    gram = others[0].T @ others[0]
    rest = others[0]
    for other in others[1:]:
        gram = gram * (other.T @ other)
        rest = (rest[:, None] * other[None]).flatten(0, 1)
    right = unfold(tensor, mode) @ rest
    held = gram + _HOLD * torch.eye(len(gram), dtype=gram.dtype)
    factors[mode] = torch.linalg.solve(held, (right + _HOLD * factors[mode]).T).T
    return right, gram


def cp_sum(factors: Sequence[Tensor]) -> Tensor:
    """The tensor that the factors of `cp_factors` stand for.

    >>> cp_sum([torch.ones(2, 1), torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1)]).shape
    torch.Size([2, 1, 1, 1])
    """
    first, second, third, last = factors
    left = (first[:, None] * second[None]).flatten(0, 1)
    right = (third[:, None] * last[None]).flatten(0, 1)
    return (left @ right.T).view(*(len(factor) for factor in factors))


def cp(weight: Tensor, rank: int) -> list[Tensor]:
    """Factors [rank, in, 1, 1], [rank, 1, 1, kw], [rank, 1, kh, 1] and [out, rank, 1, 1] of a kernel."""
    outof, into, height, width = cp_factors(weight, rank)
    alone = [width.T[:, None, None, :], height.T[:, None, :, None]]
    return [into.T[:, :, None, None], *alone, outof[:, :, None, None]]


def separable(weight: Tensor) -> list[Tensor]:
    """Factors [in, 1, kh, kw] and [out, in, 1, 1]: for each input channel the best product of a kernel and outputs."""
    outputs, inputs, height, width = weight.shape
    left, values, right = torch.linalg.svd(weight.transpose(0, 1).flatten(2), full_matrices=False)
    root = values[:, 0].sqrt()
    kernels = (root[:, None] * right[:, 0]).view(inputs, 1, height, width)
    return [kernels, (left[:, :, 0] * root[:, None]).T.reshape(outputs, inputs, 1, 1)]


def grouped(weight: Tensor, groups: int) -> list[Tensor]:
    """The factor [out, in / groups, kh, kw]: each filter's part on the inputs that a shuffle brings to its group."""
    inputs = weight.shape[1]
    brought = torch.arange(inputs).view(groups, -1).T.reshape(groups, -1)
    return [torch.cat([part[:, at] for part, at in zip(weight.chunk(groups), brought, strict=True)])]


_VALUES = {"svd": svd, "tucker": tucker, "cp": cp, "spatial": spatial, "separable": separable, "grouped": grouped}


@torch.no_grad()
def fill(made: nn.Sequential, layer: nn.Module, form: str, ranks: Sequence[int]) -> None:
    """Give `made`, which is `layer` in another form, the values that come nearest to the layer's.

    >>> from lightning_compress.core.forms import blank
    >>> layer = nn.Linear(3, 2)
    >>> made = blank(layer, "svd", [2])
    >>> fill(made, layer, "svd", [2])
    >>> bool(torch.allclose(made(torch.ones(1, 3)), layer(torch.ones(1, 3)), atol=1e-6))
    True
    """
    compute: Any = _VALUES[form]
    found = compute(weight_of(layer).detach().double().cpu(), *ranks)
    if isinstance(layer, nn.RNNBase):
        _fill_recurrent(made, layer, *found)
        return
    weighted: list[Any] = [each for each in made if hasattr(each, "weight")]
    for each, values in zip(weighted, found, strict=True):
        each.weight.copy_(values)
    if isinstance(layer.bias, Tensor):
        weighted[-1].bias.copy_(layer.bias)


def _fill_recurrent(made: nn.Sequential, layer: nn.Module, first: Tensor, second: Tensor) -> None:
    """The factors of what reads the inputs; all other weights and biases stay."""
    linear: Any = made[0]
    linear.weight.copy_(first)
    own = dict(layer.named_parameters())
    parts = iter(torch.split(second, len(own["weight_ih_l0"])))
    for name, parameter in made[1].named_parameters():
        parameter.copy_(next(parts) if recurrent.reads_inputs(name) else own[name])
