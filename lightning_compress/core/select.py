"""Which layers a method acts on."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn

Value = TypeVar("Value")
WEIGHTED: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def layers(
    model: nn.Module,
    *,
    owner: str,
    select: str = "",
    exclude: Sequence[str] = (),
    kinds: tuple[type[nn.Module], ...] = WEIGHTED,
) -> dict[str, nn.Module]:
    """Layers of `model` of the given `kinds` by name, in order of definition.

    `select` and each of `exclude` are regular expressions searched in the name; `"<first>"` and `"<last>"` in
    `exclude` stand for the first and the last layer.

    Raises:
        ValueError: nothing is left, or an `exclude` matches nothing; the message lists the names there are.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> list(layers(net, owner="Prune", exclude=["<last>"]))
    ['0']
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    names = list(found)
    dropped: set[str] = set()
    for pattern in exclude:
        hit = {"<first>": names[:1], "<last>": names[-1:]}.get(pattern)
        hit = [name for name in names if re.search(pattern, name)] if hit is None else hit
        if not hit:
            raise ValueError(f"{owner}: exclude={pattern!r} matches no layer; the model has {_shown(names)}")
        dropped.update(hit)
    kept = {name: module for name, module in found.items() if name not in dropped and re.search(select, name)}
    if not kept:
        raise ValueError(
            f"{owner} matched no layer: select={select!r}, exclude={list(exclude)} but the model has {_shown(names)}"
        )
    return kept


def by_pattern(given: Mapping[str, Value], names: Iterable[str], *, owner: str) -> dict[str, Value]:
    """What `given` says of each of `names`: under the first of its regular expressions that is found in the name.

    Raises:
        ValueError: a name that no pattern is found in, or a pattern other than '' that counts for no name.

    >>> by_pattern({"conv": 1, "": 2}, ["conv1", "fc"], owner="Example")
    {'conv1': 1, 'fc': 2}
    """
    names = list(names)
    found = {name: next((pattern for pattern in given if re.search(pattern, name)), None) for name in names}
    for pattern in given:
        if pattern and pattern not in found.values():  # there may be no rest
            raise ValueError(
                f"{owner}: pattern {pattern!r} counts for no layer, each takes the first pattern found in its name; "
                f"they are {_shown(names)}"
            )
    chosen = {name: given[pattern] for name, pattern in found.items() if pattern is not None}
    for name in names:
        if name not in chosen:
            raise ValueError(
                f"{owner} says nothing of {name!r}, only of {', '.join(given)}: add {exactly(name)!r}, or at the end "
                "'' for the rest"
            )
    return chosen


def exactly(name: str) -> str:
    """The regular expression that matches `name` and nothing else.

    >>> exactly("fc1")
    '^fc1$'
    """
    return f"^{re.escape(name)}$"


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"{shown} ({len(names)} names)"
