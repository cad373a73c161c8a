"""A tensor that methods change, wherever modules hold it."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self, final

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_compress.core import recurrent, surgery


@final
class Place(NamedTuple):
    """A module, by its name and itself, and the name that it has for a tensor."""

    layer: str
    module: nn.Module
    attribute: str


@final
@dataclass(frozen=True)
class Weight:
    """A tensor that methods change; it has several places where it is tied, and what is put on it is put on all.

    >>> layer = nn.Linear(2, 3)
    >>> weight = Weight.of(layer)
    >>> weight.put(nn.ReLU())
    >>> weight.latent is layer.parametrizations.weight.original
    True
    """

    places: tuple[Place, ...]

    @classmethod
    def of(cls, module: nn.Module, attribute: str = "weight") -> Self:
        """The tensor of a module that has it alone."""
        return cls((Place("", module, attribute),))

    @property
    def value(self) -> Tensor:
        """What its modules compute with."""
        found: Tensor = getattr(self.places[0].module, self.places[0].attribute)
        return found

    @property
    def latent(self) -> Tensor:
        """What is trained, under all parametrizations."""
        return surgery.latent(*self.places[0][1:])

    @property
    def steps(self) -> list[Any]:
        """Its parametrizations, in order."""
        _, module, attribute = self.places[0]
        if not parametrize.is_parametrized(module, attribute):
            return []
        stacks: Any = module.parametrizations
        return list(stacks[attribute])

    @property
    def masks(self) -> list[nn.Module]:
        """The masks among them, as `surgery.masks_on`."""
        return surgery.masks_on(*self.places[0][1:])

    @property
    def has_codebook(self) -> bool:
        """Whether one of them is a codebook, as `surgery.codebook_on`."""
        return surgery.codebook_on(*self.places[0][1:])

    def below(self, step: nn.Module) -> Tensor:
        """What comes to the parametrization `step`, as `surgery.below`."""
        return surgery.below(*self.places[0][1:], step)

    def put(self, step: nn.Module) -> None:
        """Put a parametrization above those that there are."""
        for _, module, attribute in self.places:
            parametrize.register_parametrization(module, attribute, step)
            if isinstance(module, nn.RNNBase):
                recurrent.follow(module)
