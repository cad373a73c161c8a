"""Masks that move at constant sparsity: what was removed returns in the place of what is smallest."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_compress.core import lookup
from lightning_compress.core.schedule import Cosine
from lightning_compress.prune import scores
from lightning_compress.prune.allocate import top
from lightning_compress.prune.dynamics import Dynamics, Rank, Site
from lightning_compress.prune.patterns import InPlace


@final
class Regrow(Dynamics):
    """Constant sparsity: every `every` steps some units of each layer are dropped and as many that were gone return.

    Dropped are the kept ones of the least magnitude, a `fraction` that falls along half a cosine until progress
    `until`. Of all that are not kept then, those with the highest score `grow` return: "gradient", of the loss where
    weights are masked too (RigL: Evci 2020, arXiv 1911.11134), or "random" (SET: arXiv 1707.04780). They start at zero,
    and optimizers begin afresh with them (but Adam's count of steps goes on). The first masks come before the first
    step, by the score of `Prune`: "random" as in the papers, or another.

    Raises:
        ValueError: a value out of range.

    >>> Regrow().fraction(0.75)
    0.0
    """

    def __init__(
        self, fraction: float = 0.3, *, until: float = 0.75, grow: str | Callable[..., Tensor] = "gradient"
    ) -> None:
        super().__init__()
        if not 0.0 < fraction < 1.0 or not 0.0 < until <= 1.0:
            raise ValueError(
                "Regrow needs 0 < fraction < 1, the share of what is kept that is dropped, and 0 < until <= 1, a share "
                f"of the phase, not an epoch; got fraction={fraction}, until={until}"
            )
        self.fraction, self.until = Cosine(first=fraction, last=0.0, end=until), until
        self.grow = lookup.function(grow, scores)
        self.scores = (self.grow,)
        self._returned = 0
        self._revived: list[tuple[nn.Parameter, Tensor]] = []

    def get_extra_state(self) -> dict[str, Any]:
        """How many weights have returned so far."""
        return {"returned": self._returned}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        self._returned = state["returned"]

    def attach(self, site: Site) -> None:
        """See that sparsity is constant, and that single units may change places."""
        super().attach(site)
        if not isinstance(site.pattern, InPlace) or ":" in str(site.name):
            raise ValueError(
                f"Regrow: units of pattern={site.name!r} cannot change places one by one; write unstructured, row, or "
                "blocks such as 4x1"
            )
        for amount in site.amounts:
            if amount(0.0) != amount(1.0):
                raise ValueError(
                    f"Regrow: sparsity is the same from the start; got a schedule from {amount(0.0):.4g} to "
                    f"{amount(1.0):.4g}, write the number {amount(1.0):.4g}"
                )

    def watch(self, progress: float) -> None:
        """What returned last is no longer new."""
        self._revived = []

    @torch.no_grad()
    def stir(self, rank: Rank, progress: float) -> dict[str, float]:
        """Drop and give back; what was dropped may return at once, as it was."""
        fraction = self.fraction(progress)
        if fraction == 0.0:
            return {}
        kept, size, slope = self.site.pattern.keep(), rank(scores.magnitude), rank(self.grow)
        before = [mask.mask.clone() for _, mask in self.site.masks]
        for _, mask in self.site.masks:
            mask.mask.fill_(1.0)
        self.site.pattern.apply({name: exchange(kept[name], size[name], slope[name], fraction) for name in kept})
        returned = 0
        for (steps, mask), earlier in zip(self.site.masks, before, strict=True):
            new = mask.mask > earlier
            steps.original.masked_fill_(new, 0.0)
            self._revived.append((steps.original, new))
            returned += int(new.sum())
        self._returned += returned
        return {"prune/returned": float(returned)}

    def revived(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The weights that just returned."""
        return self._revived

    def settled(self, progress: float) -> bool:
        """By `until` some weights have returned."""
        return progress >= self.until

    def missing_effect(self) -> str | None:
        """None has."""
        return None if self._returned else f"no weight has returned by until={self.until}; write a smaller every"


def exchange(kept: Tensor, size: Tensor, slope: Tensor, fraction: float) -> Tensor:
    """`kept`, bool [units], with `fraction` of its units, the smallest, exchanged for those of the largest `slope`.

    >>> kept, size = torch.tensor([True, True, False, False]), torch.tensor([1.0, 2.0, 0.0, 0.0])
    >>> exchange(kept, size, torch.tensor([0.0, 0.0, 3.0, 4.0]), 0.5)
    tensor([False,  True, False,  True])
    """
    count = int(kept.sum())
    moved = min(round(fraction * count), len(kept) - count)
    stay = top(size.masked_fill(~kept, -torch.inf), count - moved)
    return top(slope.masked_fill(stay, torch.inf), count)
