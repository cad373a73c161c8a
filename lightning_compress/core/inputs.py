"""What a model is called with: one tensor, a tuple of arguments, or arguments by name."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model takes `inputs`: a tuple or list is its arguments, a mapping those by name, all else is one argument.

    A named tuple, such as a packed sequence, is one argument; so is what a tuple of length 1 holds.

    >>> arguments((1, 2)), arguments({"a": 1}), arguments(3)
    (((1, 2), {}), ((), {'a': 1}), ((3,), {}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if type(inputs) in (tuple, list) else (inputs,)), {}


def call(model: nn.Module, inputs: Any) -> Any:
    """What `model` puts out for `inputs`.

    >>> call(nn.Bilinear(2, 3, 4), (torch.ones(5, 2), torch.ones(5, 3))).shape
    torch.Size([5, 4])
    """
    args, named = arguments(inputs)
    return model(*args, **named)


def named(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """The tensors of a batch by the names under which `model` takes them; a single one is called "input".

    Raises:
        ValueError: an argument is not a tensor.

    >>> list(named(nn.Bilinear(2, 3, 4), (torch.ones(5, 2), torch.ones(5, 3))))
    ['input1', 'input2']
    """
    args, found = arguments(inputs)
    if len(args) == 1:
        found = {"input": args[0]}
    elif args:
        parameters = inspect.signature(model.forward).parameters.values()
        known = [each.name for each in parameters if each.kind <= each.POSITIONAL_OR_KEYWORD]
        names = known if len(known) >= len(args) else [f"input{number}" for number in range(len(args))]
        found = dict(zip(names, args, strict=False))
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(model).__name__} takes {name!r} as a {type(value).__name__}, expected a tensor: "
                "let its forward take each tensor as an argument of its own"
            )
    return found


def rows(inputs: Any, at: slice | Tensor) -> Any:
    """The samples of a batch at some places, in the form that the batch has.

    >>> rows({"a": torch.ones(5, 2)}, slice(3))["a"].shape
    torch.Size([3, 2])
    """
    return tree_map(lambda value: value[at] if isinstance(value, Tensor) else value, inputs)


def device_of(inputs: Any) -> torch.device:
    """Where a batch lives: the device of its first tensor.

    >>> device_of((torch.ones(1), torch.ones(1)))
    device(type='cpu')
    """
    found: torch.device = next(value.device for value in tree_leaves(inputs) if isinstance(value, Tensor))
    return found
