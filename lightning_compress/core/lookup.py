"""Find a function by name, so that a configuration can say `magnitude` or `my_package.scores.mine`."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def function(name: str | Callable[..., Any], *homes: ModuleType) -> Callable[..., Any]:
    """The function called `name`: a bare name is looked up in the modules `homes`, a dotted path is imported.

    Raises:
        ValueError: no such function; the message names the nearest one in `homes`.

    >>> import math
    >>> function("sqrt", math)(4.0)
    2.0
    """
    if callable(name):
        return name
    if "." in name:
        return _imported(name)
    known = {key: value for home in homes for key, value in vars(home).items() if _is_offered(key, value, home)}
    if name not in known:
        places = " or ".join(home.__name__ for home in homes)
        raise ValueError(f"no function {name!r} in {places} ({_nearest(name, known)}")
    return known[name]  # type: ignore[no-any-return]


def among(name: str | Callable[..., Any], known: Mapping[str, Callable[..., Any]], *, owner: str) -> Callable[..., Any]:
    """The entry of `known` called `name`, or what is at a dotted path; something that can be called stays.

    Raises:
        ValueError: no such entry; the message, which begins with `owner`, names the nearest one.

    >>> among("square", {"square": lambda x: x * x}, owner="Example")(3)
    9
    """
    if callable(name):
        return name
    if name in known:
        return known[name]
    if "." not in name:
        raise ValueError(f"{owner}: no {name!r} ({_nearest(name, known)}")
    return _imported(name)


def instance(given: Any, kind: type[Kind], *, owner: str) -> Kind:
    """`given`, if it is a `kind`.

    Raises:
        ValueError: it is not; the message, which begins with `owner`, says how to write one.

    >>> instance(3, int, owner="Example")
    3
    """
    if not isinstance(given, kind):
        example = next(iter(kind.__subclasses__()), kind)
        path = f"{example.__module__}.{example.__name__}"
        raise ValueError(f"{owner} is an object, as {{_target_: {path}}}; got {given!r}")
    return given


def _imported(path: str) -> Callable[..., Any]:
    home, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(home), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"expected the dotted path of a function, got {path!r}: {error}") from error
    if not callable(found):
        raise ValueError(f"expected a function at {path!r}, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "write one of these or a dotted path"
    return f"it has {', '.join(names)}): {hint}"


def _is_offered(key: str, value: Any, home: ModuleType) -> bool:
    """Whether `home` itself defines this public function: what it imported is not meant."""
    return callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == home.__name__
