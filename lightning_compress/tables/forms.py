"""What may be written in a table's file: the form of each key, and what is said of a wrong one."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from lightning_compress.core.strict_yaml import unknown

#: How a published value is known: from the paper, its authors' repository, another paper, or from memory alone.
CONFIDENCES = ("V-paper", "V-repo", "V-2nd", "M")


def made(kind: Any, where: str, given: Mapping[str, Any], data: Any) -> Any:
    """A dataclass of a mapping in the file; `given` holds what the file need not say."""
    free = {each.name for each in fields(kind) if each.default is not MISSING}.union(given)
    known = [each.name for each in fields(kind) if each.name != "name"]
    hold(where, data, [name for name in known if name not in free], known, kind.__name__)
    return kind(**{**given, **data})


def hold(where: str, data: Any, needed: Iterable[str], known: Sequence[str], kind: str = "") -> None:
    """Check the keys and the forms of a mapping in the file."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} must hold keys like {', '.join(known[:3])}; got {data!r}")
    for key, value in data.items():
        if key not in known:
            raise ValueError(f"{where}: key {unknown(str(key), known, 'what can be written there')}")
        expected, right = _OWN_FORMS.get((kind, key)) or _FORMS[key]
        if not right(value):
            hint = " (nothing is written for what is not known)" if value == "NF" else ""
            raise ValueError(f"{where}: {key} must be {expected}; got {value!r}{hint}")
    missing = [key for key in needed if key not in data]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing")


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _list_of(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(right, value)) and len(set(map(str, value))) == len(value)


def _names(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(key, str) for key in value)


_TEXT, _NUMBER = ("a text", _text), ("a number", _number)
_OVERRIDES = ("a list of different overrides like epochs=3", _list_of(lambda v: _text(v) and ("=" in v or v[0] == "~")))
_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("title", "about", "section", "experiment", "runs_of", "after", "baseline", "cause"), _TEXT),
    **dict.fromkeys(("source", "authors", "venue", "url", "tables", "column", "better", "worse"), _TEXT),
    **dict.fromkeys(("value", "at_most", "at_least", "scale", "offset", "least"), _NUMBER),
    **dict.fromkeys(("sd", "within"), ("a number from 0 up", lambda v: _number(v) and v >= 0)),
    "n": ("a count from 1 up", lambda v: _whole(v) and v >= 1),
    "decimals": ("a whole number from 0 up", _whole),
    "metric": ("a number's name, or `a / b`", lambda v: _text(v) and len(v.split(" / ")) <= 2),
    "confidence": (f"one of {', '.join(CONFIDENCES)}", lambda v: v in CONFIDENCES),
    "selection": ("last or validation", lambda v: v in ("last", "validation")),
    "needs": ("one of cpu, gpu, data", lambda v: v in ("cpu", "gpu", "data")),
    "seeds": ("a list of different whole numbers from 0 up", _list_of(_whole)),
    "departures": ("a list of sentences", _list_of(_text)),
    "overrides": _OVERRIDES,
    "claims": ("a list of claims, as [{column: error, better: a, worse: b, source: s}]", _list_of(_names)),
    "paper": ("keys authors, title, venue, url, tables", _names),
    **dict.fromkeys(("columns", "rows", "published"), ("a mapping by name, not empty", _names)),
}
_OWN_FORMS: dict[tuple[str, str], tuple[str, Callable[[Any], bool]]] = {
    ("Column", "better"): ("higher or lower", lambda v: v in ("higher", "lower")),
}
