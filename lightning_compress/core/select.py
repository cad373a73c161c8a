"""Which layers a method acts on."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from lightning_compress.core import recurrent, surgery
from lightning_compress.core.weight import Place, Weight

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
    kept = _chosen(list(found), owner, select, exclude)[0]
    return {name: module for name, module in found.items() if name in kept}


def weights(model: nn.Module, *, owner: str, select: str = "", exclude: Sequence[str] = ()) -> dict[str, Weight]:
    """The weights of convolutions, linear layers, embeddings and recurrent layers, in order of definition.

    One goes by the name of its layer, the several of a recurrent layer by their own, such as "lstm.weight_hh_l0". A
    tied one is there once, by its first name; of its names `select` has to find one, and `exclude` none.

    Raises:
        ValueError: as `layers`.

    >>> net = nn.Sequential(nn.Embedding(5, 4), nn.GRU(4, 3))
    >>> list(weights(net, owner="Prune"))
    ['0', '1.weight_ih_l0', '1.weight_hh_l0']
    """
    found = {name: place for layer, module in model.named_modules() for name, place in _places(layer, module)}
    kept, dropped = _chosen(list(found), owner, select, exclude)
    tied: dict[int, list[str]] = {}
    for name, (_, module, attribute) in found.items():
        tied.setdefault(id(surgery.latent(module, attribute)), []).append(name)
    groups = [names for names in tied.values() if kept & set(names) and not dropped & set(names)]
    if not groups:
        raise ValueError(f"{owner}: exclude={list(exclude)} leaves no weight; the others are tied to what it names")
    return {names[0]: Weight(tuple(found[name] for name in names)) for names in groups}


def _places(layer: str, module: nn.Module) -> list[tuple[str, Place]]:
    """The weights of a module, by the names that they have in a model."""
    if isinstance(module, (*WEIGHTED, nn.Embedding)):
        return [(layer, Place(layer, module, "weight"))]
    if not isinstance(module, recurrent.KINDS):
        return []
    return [(surgery.dotted(layer, name), Place(layer, module, name)) for name in recurrent.names(module)]


def readers(weights: Iterable[Weight]) -> dict[str, nn.Module]:
    """The layers that multiply their inputs with some of the `weights`, by name: all but embeddings.

    >>> net = nn.Sequential(nn.Embedding(5, 4), nn.GRU(4, 3))
    >>> list(readers(weights(net, owner="Quantize").values()))
    ['1']
    """
    places = (place for weight in weights for place in weight.places)
    return {layer: module for layer, module, _ in places if not isinstance(module, nn.Embedding)}


def _chosen(names: list[str], owner: str, select: str, exclude: Sequence[str]) -> tuple[set[str], set[str]]:
    """Which of the names are selected and not excluded, and which are excluded."""
    dropped: set[str] = set()
    for pattern in exclude:
        hit = {"<first>": names[:1], "<last>": names[-1:]}.get(pattern)
        hit = [name for name in names if re.search(pattern, name)] if hit is None else hit
        if not hit:
            raise ValueError(f"{owner}: exclude={pattern!r} matches no layer; the model has {_shown(names)}")
        dropped.update(hit)
    kept = {name for name in names if name not in dropped and re.search(select, name)}
    if not kept:
        raise ValueError(
            f"{owner} matched no layer: select={select!r}, exclude={list(exclude)} but the model has {_shown(names)}"
        )
    return kept, dropped


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
