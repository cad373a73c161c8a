"""What presses units towards zero before masks remove them; its strength is a number or a schedule of progress."""

from typing import final

import torch
from torch import Tensor

from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.prune.patterns import OfChannels, Pattern, masked_latent, weights_of

_MOMENTS = 100


class Penalty:
    """Base of the penalties: a term of the loss, or a move after each optimizer step.

    Raises:
        ValueError: a strength below zero, or zero all along.
    """

    def __init__(self, strength: float | Schedule) -> None:
        self.strength = as_schedule(strength)
        found = [self.strength(moment / _MOMENTS) for moment in range(_MOMENTS + 1)]
        if min(found) < 0 or max(found) == 0:
            raise ValueError(
                f"{type(self).__name__}: strength is positive at some time and never negative; "
                f"got {min(found):.4g} to {max(found):.4g}"
            )

    def attach(self, pattern: Pattern) -> None:
        """See that `pattern` has what is pressed.

        Raises:
            ValueError: it has not.
        """

    def term(self, pattern: Pattern) -> Tensor | None:
        """The term of the loss, for a strength of 1; None if there is none."""
        return None

    def loss(self, pattern: Pattern, progress: float) -> dict[str, Tensor]:
        """The terms of the loss at `progress`."""
        strength = self.strength(progress)
        term = None if strength == 0.0 else self.term(pattern)
        return {} if term is None else {"prune_penalty": strength * term}

    def update(self, pattern: Pattern, progress: float) -> None:
        """Move after an optimizer step."""


@final
class GroupLasso(Penalty):
    """The units' L2 norms in the loss, each times the root of its number of weights (SSL: arXiv 1608.03665).

    For single weights it is the L1 norm. A strength that grows is that of Wang 2021 (arXiv 2012.09243) for all units.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> from lightning_compress.core.weight import Weight
    >>> from lightning_compress.prune.patterns import row
    >>> term = GroupLasso(1.0).term(row(layer, None, {"": Weight.of(layer)}))
    >>> round(float(term.detach()), 4)  # 5 times the root of 2
    7.0711
    """

    def term(self, pattern: Pattern) -> Tensor:
        """Sum over all units."""
        norms = [_norms(entries).sum() for entries in pattern.view(masked_latent).values()]
        return torch.stack(norms).sum()


@final
class Slimming(Penalty):
    """The absolute scales of the channels' batch norms in the loss (slimming: Liu 2017, arXiv 1708.06519).

    >>> Slimming(1e-4).strength(0.5)
    0.0001
    """

    def attach(self, pattern: Pattern) -> None:
        """Only channels have batch norms."""
        _of_channels(pattern).norms()

    def term(self, pattern: Pattern) -> Tensor:
        """Sum over all channels."""
        norms = _of_channels(pattern).norms(masked_latent)
        return torch.stack([scales.abs().sum() for scales in norms.values()]).sum()


@final
class Proximal(Penalty):
    """After each optimizer step the units' norms fall by `strength`, to exact zeros: the proximal step of `GroupLasso`.

    `strength` is that of the penalty times the learning rate, and SGD without momentum the optimizer that it is a
    proximal gradient method with. As there it counts times the root of a unit's number of weights.

    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.6, -0.8], [0.1, 0.0]]))
    >>> from lightning_compress.core.weight import Weight
    >>> from lightning_compress.prune.patterns import row
    >>> Proximal(0.5 / 2**0.5).update(row(layer, None, {"": Weight.of(layer)}), 1.0)
    >>> layer.weight.tolist()
    [[0.30000001192092896, -0.4000000059604645], [0.0, 0.0]]
    """

    def update(self, pattern: Pattern, progress: float) -> None:
        """Shrink every unit."""
        strength = self.strength(progress)
        if strength == 0.0:
            return
        pressed = weights_of(pattern)
        # How a pattern lays its units out is linear: its derivative carries one number of a unit to all its entries.
        ones = {weight: torch.ones_like(weight.latent, requires_grad=True) for weight in pressed}
        laid, weights = pattern.view(ones.__getitem__), pattern.view()
        total = []
        for name, entries in weights.items():
            norms = _norms(entries)
            # Of what is zero already nothing is left to take away.
            part = (strength * entries.shape[1] / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)
            total.append((laid[name] * part.unsqueeze(1)).sum())
        shares = torch.autograd.grad(torch.stack(total).sum(), list(ones.values()))
        with torch.no_grad():
            for weight, share in zip(pressed, shares, strict=True):
                weight.latent.mul_(1.0 - share)


def _norms(entries: Tensor) -> Tensor:
    """The L2 norm of each row of [units, size], times the root of the size."""
    found: Tensor = torch.linalg.vector_norm(entries, dim=1) * entries.shape[1] ** 0.5
    return found


def _of_channels(pattern: Pattern) -> OfChannels:
    if not isinstance(pattern, OfChannels):
        raise ValueError("Prune: Slimming presses the scales of channels' batch norms; write pattern=channel")
    return pattern
