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
    """What `given` says of each of `names`, under the one regular expression that is found in it.

    Raises:
        ValueError: a name that none or several of them match, or one that matches no name.

    >>> by_pattern({"conv": 1, "^fc$": 2}, ["conv1", "fc"], owner="Prune")
    {'conv1': 1, 'fc': 2}
    """
    names = list(names)
    found = {name: [pattern for pattern in given if re.search(pattern, name)] for name in names}
    for name, hits in found.items():
        if len(hits) != 1:
            got = f"both {hits[0]!r} and {hits[1]!r} match it" if hits else f"none of {list(given)} matches it"
            raise ValueError(f"{owner}: {name!r} needs one value, but {got}; write it as {exactly(name)!r}")
    unused = [pattern for pattern in given if [pattern] not in found.values()]
    if unused:
        raise ValueError(f"{owner}: {unused[0]!r} matches nothing; there are {_shown(names)}")
    return {name: given[hits[0]] for name, hits in found.items()}


def exactly(name: str) -> str:
    """The regular expression that matches `name` and nothing else.

    >>> exactly("fc1")
    '^fc1$'
    """
    return f"^{re.escape(name)}$"


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"{shown} ({len(names)} names)"
