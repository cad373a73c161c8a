"""The parametrization of a shared weight: a codebook."""

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_compress.core.stored import Stored
from lightning_compress.share import cluster


class _Shared(torch.autograd.Function):
    """Centroids in the place of weights; a centroid's gradient is the sum over the weights that share it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, centroids: Tensor, codes: Tensor, active: bool) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.active, ctx.like = active, centroids.shape
        return centroids.index_select(0, codes.flatten()).view(weight.shape) if active else weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (codes,) = ctx.saved_tensors
        (grad,) = grads
        summed = grad.new_zeros(ctx.like)
        # Weights and centroids have a gradient at all times: under DDP each parameter has to be part of each step.
        if not ctx.active:
            return grad, summed, None, None
        blocks = grad.reshape(codes.numel(), *ctx.like[1:])
        index = codes.reshape(-1, *[1] * (blocks.dim() - 1)).expand_as(blocks)
        return torch.zeros_like(grad), summed.scatter_add_(0, index, blocks), None, None


@final
class Codebook(nn.Module):
    """Replaces each weight, or block of `length` neighbours, by the centroid that its code names (arXiv 1510.00149).

    `codes` (int64) has a row for each row of the weight and an entry for each block of it; `centroids` is [clusters],
    or [clusters, length] where length > 1. The same as the identity until `active`.

    >>> book = Codebook((2, 2), nn.Parameter(torch.tensor([-1.0, 1.0])))
    >>> book.share(torch.tensor([[0.3, -0.2], [2.0, 0.1]]))
    >>> book(torch.zeros(2, 2)).tolist()
    [[1.0, -1.0], [1.0, 1.0]]
    """

    #: By this a quantizer knows that levels, not weights, are what it has to round.
    is_codebook: ClassVar[bool] = True
    codes: Tensor

    def __init__(self, shape: tuple[int, ...], centroids: nn.Parameter) -> None:
        super().__init__()
        columns = torch.Size(shape[1:]).numel()
        length = torch.Size(centroids.shape[1:]).numel()
        self.register_buffer("codes", torch.zeros(shape[0], columns // length, dtype=torch.int64))
        self.centroids = centroids
        self.active = False

    @torch.no_grad()
    def share(self, weight: Tensor) -> None:
        """Give each entry of `weight` the code of its nearest centroid, for good."""
        blocks = weight.reshape(-1, *self.centroids.shape[1:])
        self.codes.copy_(cluster.assign(blocks, self.centroids.to(blocks)).view_as(self.codes))
        self.active = True

    def forward(self, weight: Tensor) -> Tensor:
        """The shared weight, of the weight's shape."""
        return _Shared.apply(weight, self.centroids, self.codes, self.active)  # type: ignore[no-any-return, no-untyped-call]

    def store(self, stored: Stored) -> Stored:
        """A shared tensor on disk."""
        if not self.active:
            return stored
        codes = self.codes.cpu()
        if self.centroids.dim() == 1:
            codes = codes.view(stored.value.shape)
        return stored.chosen(codes, self.centroids.detach().cpu().float())
