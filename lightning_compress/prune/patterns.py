"""The shape of what is removed together.

A pattern puts its masks on the model, ranks its units, and turns the units to keep into masks:
`pattern(model, example, layers) -> object` with `scores(score)`, `apply(keep)`, `keep()` and `finalize(compact)`.
"""

from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact

Score = Callable[[Tensor], Tensor]


class Pattern(Protocol):
    """What `Prune` asks of a pattern; units are named by layer, keep and scores are 1-D."""

    def scores(self, score: Score) -> dict[str, Tensor]:
        """Score of each unit that could be removed, -inf where it already is."""
        ...

    def apply(self, keep: dict[str, Tensor]) -> None:
        """Tighten the masks: what is gone stays gone."""
        ...

    def keep(self) -> dict[str, Tensor]:
        """The units that the masks keep now."""
        ...

    def finalize(self, compact: Compact) -> Compact:
        """Remove physically what can be removed."""
        ...


@torch.no_grad()
def masked_weight(layer: nn.Module, name: str = "weight") -> Tensor:
    """The latent weight of a masked layer under all its masks, before quantizers and the like."""
    stacks: Any = layer.parametrizations
    weight: Tensor = stacks[name].original.detach()
    for step in stacks[name]:
        if isinstance(step, Mask):
            weight = step(weight)
    return weight


@final
class Unstructured:
    """Single weights; the zeros stay in place and are coded away in the packed file.

    >>> layer = nn.Linear(2, 2)
    >>> pattern = Unstructured(layer, None, {"": layer})
    >>> {name: score.shape for name, score in pattern.scores(abs).items()}
    {'': torch.Size([4])}
    """

    def __init__(self, model: nn.Module, example: Any, layers: dict[str, nn.Module]) -> None:
        self._layers = layers
        self._masks = {name: Mask.on(layer, "weight", layer.weight.shape) for name, layer in layers.items()}  # type: ignore[arg-type]

    def scores(self, score: Score) -> dict[str, Tensor]:
        """Score of each weight, -inf where it is masked, so that it is never preferred to one that is not."""
        found = {}
        for name, mask in self._masks.items():
            found[name] = score(masked_weight(self._layers[name])).masked_fill(mask.mask == 0, -torch.inf).flatten()
        return found

    def apply(self, keep: dict[str, Tensor]) -> None:
        """Tighten the masks: what is gone stays gone."""
        for name, mask in self._masks.items():
            mask.mask.mul_(keep[name].view_as(mask.mask))

    def keep(self) -> dict[str, Tensor]:
        """The weights that the masks keep now."""
        return {name: mask.mask.flatten() > 0 for name, mask in self._masks.items()}

    def finalize(self, compact: Compact) -> Compact:
        """Nothing to remove: single zeros have no shape."""
        return compact
