"""Which layers a method acts on."""

import re
from collections.abc import Sequence

from torch import nn

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


def assign(names: Sequence[str], patterns: Sequence[str], *, owner: str) -> dict[str, str]:
    """For each of `names` the one of `patterns`, regular expressions searched in it, that speaks of it.

    Raises:
        ValueError: a name that none or several of them match, or one that matches no name.

    >>> assign(["conv1", "fc"], ["conv", "^fc$"], owner="Prune")
    {'conv1': 'conv', 'fc': '^fc$'}
    """
    found = {name: [pattern for pattern in patterns if re.search(pattern, name)] for name in names}
    for name, hits in found.items():
        if len(hits) != 1:
            got = f"both {hits[0]!r} and {hits[1]!r} match it" if hits else f"none of {list(patterns)} matches it"
            raise ValueError(f"{owner}: {name!r} needs one value, but {got}; write it as {exactly(name)!r}")
    unused = [pattern for pattern in patterns if [pattern] not in found.values()]
    if unused:
        raise ValueError(f"{owner}: {unused[0]!r} matches nothing; there are {_shown(names)}")
    return {name: hits[0] for name, hits in found.items()}


def exactly(name: str) -> str:
    """The regular expression that matches `name` and nothing else.

    >>> exactly("fc1")
    '^fc1$'
    """
    return f"^{re.escape(name)}$"


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"{shown} ({len(names)} names)"
