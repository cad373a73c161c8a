"""The Hessian of a loss, seen through its products with vectors."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def derivable(model: nn.Module) -> Iterator[None]:
    """Inside, `model` runs on kernels that have first derivatives in eval mode, and second ones.

    PyTorch's fused attention has no second ones, and cuDNN's recurrent layers have none at all in eval mode.

    >>> with derivable(nn.LSTM(2, 3)):
    ...     torch.backends.cudnn.enabled
    False
    """
    cudnn, enabled = torch.backends.cudnn, torch.backends.cudnn.enabled
    try:
        cudnn.enabled = enabled and not any(isinstance(module, nn.RNNBase) for module in model.modules())
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        cudnn.enabled = enabled


def products(loss: Tensor, leaves: Sequence[Tensor], vectors: Iterable[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
    """Hv for each v of `vectors`, where H is the Hessian of `loss` (0-dim, with its graph) in all `leaves` together.

    A vector, and each product, has one tensor for each leaf, of its shape.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> [[found]] = products((x**3).sum(), [x], [[torch.ones(2)]])
    >>> found
    tensor([ 6., 12.])
    """
    slopes = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    bent = [place for place, slope in enumerate(slopes) if slope.requires_grad]
    for vector in vectors:
        if not bent:
            yield [torch.zeros_like(leaf) for leaf in leaves]
            continue
        yield list(
            torch.autograd.grad(
                [slopes[place] for place in bent],
                leaves,
                [vector[place] for place in bent],
                retain_graph=True,
                materialize_grads=True,
            )
        )


def diagonals(loss: Tensor, leaves: Sequence[Tensor], probes: int, generator: torch.Generator) -> list[Tensor]:
    """Estimated diagonal of the Hessian of `loss` in each of `leaves`, of its shape, by Hutchinson's method.

    The mean of v * Hv over `probes` random vectors v of signs, drawn for all leaves at once: what other entries add has
    a mean of zero. On a diagonal Hessian, as here, each probe is exact.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> diagonals((x**3).sum(), [x], 1, torch.Generator())
    [tensor([ 6., 12.])]
    """
    drawn = (
        [2.0 * torch.randint(2, leaf.shape, generator=generator).to(leaf) - 1.0 for leaf in leaves]
        for _ in range(probes)
    )
    signs, vectors = itertools.tee(drawn)
    found = [torch.zeros_like(leaf) for leaf in leaves]
    for sign, bent in zip(signs, products(loss, leaves, vectors), strict=True):
        for total, ours, turned in zip(found, sign, bent, strict=True):
            total += ours * turned / probes
    return [total.detach() for total in found]
