"""Find a function by name, so that a configuration can say `magnitude` or `my_package.scores.mine`."""

import difflib
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


def function(name: str | Callable[..., Any], home: ModuleType) -> Callable[..., Any]:
    """The function called `name`: a bare name is looked up in `home`, a dotted path is imported.

    Raises:
        ValueError: no such function; the message names the nearest one in `home`.

    >>> import math
    >>> function("sqrt", math)(4.0)
    2.0
    """
    if callable(name):
        return name
    if "." in name:
        path, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(path), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"expected the dotted path of a function, got {name!r}: {error}") from error
    else:
        known = {key: value for key, value in vars(home).items() if _is_offered(key, value, home)}
        found = known.get(name)
        if found is None:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "write one of these or a dotted path"
            raise ValueError(f"no function {name!r} in {home.__name__} (it has {', '.join(sorted(known))}): {hint}")
    if not callable(found):
        raise ValueError(f"expected a function at {name!r}, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _is_offered(key: str, value: Any, home: ModuleType) -> bool:
    """Whether `home` itself defines this public function: what it imported is not meant."""
    return callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == home.__name__
