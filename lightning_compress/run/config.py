"""Configurations: composed with Hydra, checked against signatures, turned into objects. Never inside `@hydra.main`."""

import difflib
import functools
import importlib
import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf"
SAFE = ("lightning_compress.", "torch.nn.", "torch.optim.")

Config = dict[str, Any]


class ConfigError(ValueError):
    """A configuration that says something impossible."""


def shipped_folders(folders: Sequence[Path] = ()) -> list[Path]:
    """Where `experiments/` and `sweeps/` are looked for: the user's folders, here, the repository, the package."""
    found = [*folders, Path.cwd(), PACKAGE.parent, PACKAGE / "shipped"]
    return [folder.resolve() for folder in found if (folder / "experiments").is_dir() or (folder / "sweeps").is_dir()]


def compose(overrides: Sequence[str] = (), *, name: str = "train", folders: Sequence[Path] = ()) -> Config:
    """The resolved configuration as plain data.

    `overrides` are Hydra's; `experiment=folder/file` takes `experiments/folder/file.yaml` from the first of `folders`,
    the working directory, the repository or the package that has it. An argument of a `_target_` that the YAML does not
    list can be set like any other key.

    Raises:
        ConfigError: a misspelt key (the nearest one is named), a missing value, a `_target_` that is not allowed.

    >>> compose(["epochs=3", "model.width=0.5"])["epochs"]
    3
    """
    overrides = [_experiment(text) for text in overrides]
    groups = [text for text in overrides if _is_group(text)]
    values = [text for text in overrides if not _is_group(text)]
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in shipped_folders(folders))}]"]
    first = _first_pass(name, (*groups, *search))
    config = _hydra(name, [*groups, *(_reachable(text, first) for text in values), *search])
    try:
        resolved: Config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'a key'} needs a value: {str(error).splitlines()[0]}") from error
    check(resolved)
    return resolved


@functools.cache
def _first_pass(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """What the groups alone give: the keys there are. Cached, since a study composes the same groups many times."""
    return _hydra(name, list(overrides))


def _experiment(text: str) -> str:
    return f"+experiments={text.removeprefix('experiment=')}" if text.startswith("experiment=") else text


def _is_group(text: str) -> bool:
    key = text.lstrip("+~").partition("=")[0].partition("@")[0]
    return key == "experiments" or (CONF / key).is_dir()


def _hydra(name: str, overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            return hydra_compose(name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_readable(str(error))) from error


def _readable(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "Available options" in message:
        start = next(i for i, line in enumerate(lines) if "Available options" in line)
        end = next((i for i, line in enumerate(lines) if line.startswith("Config search path")), len(lines))
        wanted = lines[0].rpartition("/")[2].strip("'")
        near = difflib.get_close_matches(wanted, lines[start + 1 : end], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{lines[0]}: it must be one of {', '.join(lines[start + 1 : end])}{hint}"
    return lines[0]


def _reachable(text: str, config: DictConfig) -> str:
    """The override as Hydra needs it: with `++` where only a signature knows the key."""
    key, equals, value = text.partition("=")
    if not equals or key[:1] in "+~":
        if not equals and key[:1] != "~":
            raise ConfigError(f"expected key=value, got {text!r}")
        return text
    if _has(config, key):
        return text
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if isinstance(node, DictConfig) and "_target_" in node:
        known = _parameters(node["_target_"], _allowed(config))
        if leaf in known:
            return f"++{key}={value}"
        raise ConfigError(_unknown(leaf, [*known], where=f"{node['_target_']} (at {parent})"))
    if isinstance(node, DictConfig):
        raise ConfigError(_unknown(key, _keys(config), where="the configuration"))
    off = parent.rpartition(".")[2]
    hint = f"; {parent!r} is off: choose it, for example {off}=..." if _has(config, parent) else ""
    raise ConfigError(_unknown(key, _keys(config), where="the configuration") + hint)


def _has(config: DictConfig, key: str) -> bool:
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in node


def _keys(config: Any, prefix: str = "") -> list[str]:
    found = []
    raw: Any = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    for key, value in raw.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found.extend(_keys(value, f"{prefix}{key}."))
    return found


def _unknown(name: str, known: Sequence[str], *, where: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known[:12])}"
    return f"no {name!r} in {where}: {hint}"


def _allowed(config: Any) -> tuple[str, ...]:
    return (*SAFE, *(f"{package}." for package in config.get("allow") or ()))


def resolve(target: str, allowed: Sequence[str] = SAFE) -> Any:
    """The object a `_target_` names, if its path and its home module start with an allowed prefix.

    Raises:
        ConfigError: it is not allowed, or there is no such object.

    >>> resolve("torch.nn.ReLU").__name__
    'ReLU'
    """
    if not isinstance(target, str) or not target.startswith(tuple(allowed)):
        raise ConfigError(
            f"_target_ {target!r} is not allowed: it must start with one of {', '.join(allowed)}; "
            "name a package of your own in allow=[my_package]"
        )
    path, _, leaf = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(path), leaf)
    except (ImportError, AttributeError) as error:
        try:
            near = difflib.get_close_matches(leaf, dir(importlib.import_module(path)), n=1)
        except ImportError:
            near = []
        raise ConfigError(f"_target_ {target!r}: {error}" + (f"; did you mean {near[0]!r}?" if near else "")) from error
    home = f"{getattr(found, '__module__', '')}."
    if not callable(found) or not home.startswith(tuple(allowed)):
        raise ConfigError(f"_target_ {target!r} is not allowed: it leads to {home.rstrip('.') or type(found).__name__}")
    return found


def _parameters(target: str, allowed: Sequence[str]) -> dict[str, inspect.Parameter]:
    try:
        found: Any = resolve(target, allowed)
        return dict(inspect.signature(found).parameters)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"_target_ {target!r}: {error}") from error


def signature(node: Config, allow: Sequence[str] = ()) -> dict[str, inspect.Parameter]:
    """Parameters of what a node's `_target_` names.

    >>> "out_features" in signature({"_target_": "torch.nn.Linear"})
    True
    """
    return _parameters(node["_target_"], _allowed({"allow": allow}))


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


def check(config: Config) -> None:
    """Hold every `_target_` against the allow-list and its arguments against the signature, without calling anything.

    Raises:
        ConfigError: the first thing that does not fit.
    """
    allowed = _allowed(config)
    for path, node in nodes(config):
        resolve(node["_target_"], allowed)
        known = _parameters(node["_target_"], allowed)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            continue
        for key in node:
            if key not in known and not (key.startswith("_") and key.endswith("_")):
                raise ConfigError(_unknown(key, list(known), where=f"{node['_target_']} (at {path})"))


def build(node: Config, allow: Sequence[str] = (), **offered: Any) -> Any:
    """The object that `node` describes; of `offered`, the arguments that its signature has and it does not set.

    Raises:
        ConfigError: not allowed, or an argument is missing. Errors of the object itself pass through.

    >>> build({"_target_": "torch.nn.Linear", "in_features": 2}, out_features=3, unused=1)
    Linear(in_features=2, out_features=3, bias=True)
    """
    allowed = _allowed({"allow": allow})
    for _, inner in nodes(node):
        resolve(inner["_target_"], allowed)
    known = _parameters(node["_target_"], allowed)
    extra = {key: value for key, value in offered.items() if key in known and node.get(key) is None}
    stays_partial = bool(node.get("_partial_"))
    given = {key: value for key, value in node.items() if key not in extra}
    try:
        made = hydra_instantiate({**given, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        raise ConfigError(_readable(str(error))) from error
    if stays_partial:
        return partial(made, **extra)
    try:
        return made(**extra)
    except TypeError as error:
        raise ConfigError(f"{node['_target_']}: {error}") from error
