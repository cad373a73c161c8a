"""Nodes of a configuration that name Python objects: which may be named, and what arguments they take."""

import difflib
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

Config = dict[str, Any]

#: What a `_target_` may name: building blocks. Nothing that reads a configuration itself, trains, writes or logs.
SAFE = (
    "lightning_compress.core.errors.",
    "lightning_compress.core.max_norm.",
    "lightning_compress.core.schedule.",
    "lightning_compress.data.",
    "lightning_compress.distill.",
    "lightning_compress.lowrank.",
    "lightning_compress.models.",
    "lightning_compress.prune.",
    "lightning_compress.quantize.",
    "lightning_compress.share.",
    "lightning_compress.slim.",
    "torch.nn.",
    "torch.optim.",
)
#: What the architecture in a packed file may name.
NETWORKS = ("lightning_compress.models.", "torch.nn.")


class ConfigError(ValueError):
    """A configuration that says something impossible."""


def allowed(allow: Sequence[str], safe: Sequence[str] = SAFE) -> tuple[str, ...]:
    """Prefixes that a `_target_` may begin with: the `safe` ones and the user's packages.

    Raises:
        ConfigError: `allow` is not a list.

    >>> allowed(["mine"], NETWORKS)
    ('lightning_compress.models.', 'torch.nn.', 'mine.')
    """
    if isinstance(allow, str) or not isinstance(allow, Sequence):
        raise ConfigError(f"allow must be a list of packages, as allow=[my_package]; got {allow!r}")
    return (*safe, *(f"{package}." for package in allow))


def resolve(target: str, prefixes: Sequence[str] = SAFE) -> Any:
    """The object a `_target_` names, if its path and its home module begin with an allowed prefix.

    Raises:
        ConfigError: it is not allowed, or there is no such object.

    >>> resolve("torch.nn.ReLU").__name__
    'ReLU'
    """
    if not isinstance(target, str) or not target.startswith(tuple(prefixes)):
        raise ConfigError(
            f"_target_ {target!r} is not allowed: it must begin with one of {', '.join(prefixes)}; "
            "name a package of your own in allow=[my_package]"
        )
    path, _, leaf = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(path), leaf)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"_target_ {target!r}: {error}{_nearest_in(path, leaf)}") from error
    home = f"{getattr(found, '__module__', '')}."
    if not callable(found) or not home.startswith(tuple(prefixes)):
        raise ConfigError(f"_target_ {target!r} is not allowed: it leads to {home.rstrip('.') or type(found).__name__}")
    return found


def _nearest_in(path: str, leaf: str) -> str:
    try:
        near = difflib.get_close_matches(leaf, dir(importlib.import_module(path)), n=1)
    except ImportError:
        return ""
    return f"; did you mean {near[0]!r}?" if near else ""


def signature(node: Config, allow: Sequence[str] = ()) -> dict[str, inspect.Parameter]:
    """Parameters of what a node's `_target_` names.

    >>> "out_features" in signature({"_target_": "torch.nn.Linear"})
    True
    """
    found = resolve(node["_target_"], allowed(allow))
    try:
        return dict(inspect.signature(found).parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"_target_ {node['_target_']!r} does not say which arguments it takes: {error}") from error


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Config]]:
    """Every node of a configuration that has a `_target_`, with its path."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from nodes(value, f"{path}[{index}]")


def unknown(name: str, known: Sequence[str], *, where: str) -> ConfigError:
    """The error for a name that is not there: it names the nearest that is.

    >>> unknown("lrr", ["lr", "momentum"], where="SGD")
    ConfigError("no 'lrr' in SGD: did you mean 'lr'?")
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known[:12]) or 'nothing'}"
    return ConfigError(f"no {name!r} in {where}: {hint}")


def check(config: Config, allow: Sequence[str]) -> None:
    """Hold every `_target_` against the allow-list and its arguments against the signature, without calling anything.

    Raises:
        ConfigError: the first thing that does not fit.
    """
    for path, node in nodes(config):
        known = signature(node, allow)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            continue
        for key in node:
            if key not in known and not (key.startswith("_") and key.endswith("_")):
                raise unknown(key, list(known), where=f"{node['_target_']} (at {path})")
