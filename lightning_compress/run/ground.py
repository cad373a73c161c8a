"""What a phase trains on: data, and the task, the network and the example that go with them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from lightning_compress.core import edits
from lightning_compress.core.method import Compact
from lightning_compress.core.task import Task
from lightning_compress.data.tokens import TokenData
from lightning_compress.run.targets import ConfigError


@final
@dataclass(frozen=True)
class Ground:
    """`build` makes the base network for the data module `data`; `example` is a batch of its inputs, on the CPU."""

    build: Callable[[], nn.Module]
    data: Any
    task: Task
    example: Any


def carried(model: nn.Module, compact: Compact) -> nn.Module:
    """`model` in the shape and with the tensors of a network trained on other data; of other shape, they stay its own.

    Those are the class layer's, where the numbers of classes differ (`check`). `compact` has no quantizers any more.

    >>> trained = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    >>> net = carried(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)), Compact(trained, {}))
    >>> bool((net[0].weight == trained[0].weight).all()), net[1].weight.shape
    (True, torch.Size([5, 3]))
    """
    model = edits.replay(model, compact.edits)
    own, found = model.state_dict(), compact.model.state_dict()
    fitting = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    return model.train().requires_grad_(True)


def check(before: Ground, after: Ground) -> None:
    """See that a network trained on one ground can go on on another: only the class layer is of another size.

    Raises:
        ConfigError: it cannot; names both data sets and the shapes of their inputs, or says that tokens differ.
    """
    if _tokens(before.data) != _tokens(after.data):
        raise ConfigError(
            f"a phase trains on {type(before.data).__name__} and a later one on {type(after.data).__name__} with other "
            "tokens, for which the embeddings learned mean nothing: give both one tokenizer=FILE, as the "
            "tokenizer.json that a run leaves"
        )
    ours, theirs = (dict(each.build().state_dict()) for each in (before, after))
    (left, right) = (_classes(each.data) for each in (before, after))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        shapes = [list(state[name].shape) if name in state else None for state in (ours, theirs)]
        one, other = shapes
        head = one and other and one[1:] == other[1:] and one[0] in left and other[0] in right
        if one != other and not head:
            inputs = [list(each.example.shape[1:]) for each in (before, after)]
            raise ConfigError(
                f"a phase trains on {type(before.data).__name__} with inputs {inputs[0]} and a later one on "
                f"{type(after.data).__name__} with inputs {inputs[1]}: the network's {name} would be {one}, then "
                f"{other}. Only the class layer may change: bring both to one shape, as with size=[28, 28] channels=1"
            )


def _tokens(data: Any) -> list[str]:
    """What each token id stands for, in a text."""
    return data.vocabulary.names if isinstance(data, TokenData) else []


def _classes(data: Any) -> set[int]:
    return set(data.num_classes.values()) if isinstance(data.num_classes, Mapping) else {data.num_classes}
