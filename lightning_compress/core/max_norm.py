"""`MaxNorm`: a bound on the weights that come into a unit, held after each optimizer step."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_compress.core import select
from lightning_compress.core.method import Method, Stage
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.weight import Weight


@final
class MaxNorm(Method):
    """Shrinks the weights of each unit or output channel whose L2 norm is above `limit`, back onto it.

    Srivastava et al. 2014 ("Dropout", section 5.1) bound networks with dropout so, by 3 to 4. `limit` is a number or a
    schedule of progress; `select` and `exclude` are those of `core/select.py`. Under parametrizations the trained
    weights are what is bound, as far as masks let them through.

    Raises:
        ValueError: a limit that is not positive, or no layer to bind.

    >>> layer = nn.Linear(2, 1)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> method = MaxNorm(2.5)
    >>> _ = method.update(method.attach(layer, None), 0.0)
    >>> layer.weight.tolist()
    [[1.5, 2.0]]
    """

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(self, limit: float | Schedule = 3.5, *, select: str = "", exclude: Sequence[str] = ()) -> None:
        super().__init__()
        self.limit = as_schedule(limit)
        lowest = min(self.limit(progress) for progress in (0.0, 1.0))
        if lowest <= 0:
            raise ValueError(f"MaxNorm: limit must be positive, as 3.5 is; got {lowest:g}")
        self.select, self.exclude = select, tuple(exclude)

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """See that there are such layers."""
        self._weights(model)
        return model

    @torch.no_grad()
    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Shrink what the step has made too long."""
        limit = self.limit(progress)
        for weight in self._weights(model).values():
            latent = weight.latent
            norm = torch.linalg.vector_norm(_let_through(weight).flatten(1), dim=1).clamp(min=limit)
            latent.mul_((limit / norm).view(-1, *[1] * (latent.dim() - 1)))
        return {}

    def _weights(self, model: nn.Module) -> dict[str, Weight]:
        return select.weights(model, owner="MaxNorm", select=self.select, exclude=self.exclude)


def _let_through(weight: Weight) -> Tensor:
    value = weight.latent
    for mask in weight.masks:
        value = mask(value)
    return value
