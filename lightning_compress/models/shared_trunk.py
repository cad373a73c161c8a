"""Several models in one: a trunk that they share, or none, and a head for each."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, final

from torch import Tensor, nn


@final
class SharedTrunk(nn.Module):
    """A trunk and heads on what it puts out, all computed in one forward pass (Caruana 1997, "Multitask Learning").

    Takes what `trunk` takes, gives what each of `heads` gives, by name: logits (B, classes). For methods that leave out
    `<last>`, the last head alone is meant; the regular expression `^heads` means all of them.

    Raises:
        ValueError: there are no heads.

    >>> import torch
    >>> net = SharedTrunk(nn.Linear(4, 8), {"digit": nn.Linear(8, 10), "parity": nn.Linear(8, 2)})
    >>> {head: tuple(logits.shape) for head, logits in net(torch.zeros(3, 4)).items()}
    {'digit': (3, 10), 'parity': (3, 2)}
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not heads:
            raise ValueError("SharedTrunk needs heads, such as {'digit': nn.Linear(64, 10)}; got none")
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Map inputs (B, ...) to the logits (B, classes) of each head."""
        features = self.trunk(inputs)
        return {name: head(features) for name, head in self.heads.items()}


def shared_trunk(
    trunk: Callable[..., nn.Module], num_classes: Mapping[str, int], *, in_channels: int = 1, image_size: int = 28
) -> SharedTrunk:
    """Build a `SharedTrunk` whose trunk is a classifier without its last linear layer, and its heads linear layers.

    Args:
        trunk: makes the classifier: a class, or a node of a configuration with `_partial_: true`.
        num_classes: logits of each head.
        in_channels: channels of the image.
        image_size: height and width of the image, for a trunk that wants to know.

    Raises:
        ValueError: `num_classes` names no heads, or the classifier has no linear layer.

    >>> from lightning_compress.models.small_conv import SmallConv
    >>> shared_trunk(SmallConv, {"digit": 10, "parity": 2}).heads["parity"]
    Linear(in_features=64, out_features=2, bias=True)
    """
    _check(num_classes, "shared_trunk")
    made = _made(trunk, num_classes=2, in_channels=in_channels, image_size=image_size)
    found = [(name, layer) for name, layer in made.named_modules() if isinstance(layer, nn.Linear)]
    if not found:
        raise ValueError(f"shared_trunk cuts off the last linear layer, and {type(made).__name__} has none")
    name, last = found[-1]
    made.set_submodule(name, nn.Identity())
    return SharedTrunk(made, {head: nn.Linear(last.in_features, classes) for head, classes in num_classes.items()})


def side_by_side(
    networks: Mapping[str, Callable[..., nn.Module]],
    num_classes: Mapping[str, int],
    *,
    in_channels: int = 1,
    image_size: int = 28,
) -> SharedTrunk:
    """Build a `SharedTrunk` without a trunk: whole networks for one input, compressed together and kept in one file.

    With `Share(scope="global")` they have one codebook.

    Args:
        networks: makes each network, as in `shared_trunk`, by the head that it is.
        num_classes: logits of each head.
        in_channels: channels of the image.
        image_size: height and width of the image, for networks that want to know.

    Raises:
        ValueError: `num_classes` names other heads than `networks`.

    >>> from lightning_compress.models.small_conv import SmallConv
    >>> list(side_by_side({"a": SmallConv, "b": SmallConv}, {"a": 10, "b": 2}).heads)
    ['a', 'b']
    """
    _check(num_classes, "side_by_side")
    if networks.keys() != num_classes.keys():
        raise ValueError(
            f"side_by_side has the networks {', '.join(networks)}, and the data the heads {', '.join(num_classes)}: "
            "name them alike"
        )
    shape = {"in_channels": in_channels, "image_size": image_size}
    made = {head: _made(networks[head], num_classes=classes, **shape) for head, classes in num_classes.items()}
    return SharedTrunk(nn.Identity(), made)


def _check(num_classes: Any, owner: str) -> None:
    if not isinstance(num_classes, Mapping):
        raise ValueError(
            f"{owner} needs num_classes by head, such as {{'digit': 10, 'parity': 2}}, got {num_classes}: "
            "give the data heads, as data.heads={digit:null,parity:[0,1,0,1,0,1,0,1,0,1]}"
        )


def _made(network: Callable[..., nn.Module], **facts: int) -> nn.Module:
    """The network, told what it wants to know."""
    known = inspect.signature(network).parameters
    return network(**{key: value for key, value in facts.items() if key in known})
