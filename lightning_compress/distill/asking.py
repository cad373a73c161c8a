"""What a loss asks for: after its first two arguments, by the names of its parameters."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def asked(
    loss: Callable[..., Any], offered: Collection[str], options: Mapping[str, Any], *, owner: str
) -> frozenset[str]:
    """Those of `offered` that `loss` asks for: its parameters after the first two, which `options` do not set.

    Raises:
        ValueError: an option it does not have, or a parameter that nobody has a value for.

    >>> sorted(asked(lambda student, teacher, targets, power=2: None, ["targets"], {"power": 3}, owner="Example"))
    ['targets']
    """
    _, _, *others = inspect.signature(loss).parameters.values()
    own = [parameter.name for parameter in others if parameter.name not in offered]
    name = getattr(loss, "__name__", repr(loss))
    for option in options:
        if option not in own and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in others):
            near = difflib.get_close_matches(option, own, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(own) or 'none'}"
            raise ValueError(f"{owner}: no option {option!r} of {name!r}: {hint}")
    for parameter in others:
        known = parameter.name in (*offered, *options) or parameter.kind >= parameter.VAR_KEYWORD
        if not known and parameter.default is parameter.empty:
            raise ValueError(
                f"{owner}: {name!r} asks for {parameter.name!r}; there is {', '.join(offered)}, "
                "or set it in options, or give it a default"
            )
    return frozenset(parameter.name for parameter in others) & frozenset(offered)
