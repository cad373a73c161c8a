"""Configurations: composed with Hydra, checked against signatures, turned into objects. Never inside `@hydra.main`."""

import copy
import difflib
import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_compress.run import settings, targets
from lightning_compress.run.targets import Config, ConfigError, nodes, signature, unknown

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf"


def shipped_folders(folders: Sequence[Path] = ()) -> list[Path]:
    """Where `experiments/` and `sweeps/` are looked for: the user's folders, here, the repository, the package.

    Raises:
        ConfigError: one of the user's folders has neither.
    """
    found = [*folders, Path.cwd(), PACKAGE.parent, PACKAGE / "shipped"]
    has = [(folder / "experiments").is_dir() or (folder / "sweeps").is_dir() for folder in found]
    for folder, useful in zip(folders, has, strict=False):
        if not useful:
            raise ConfigError(f"{folder} has no folder experiments/ or sweeps/ to search in")
    return [folder.resolve() for folder, useful in zip(found, has, strict=True) if useful]


def compose(overrides: Sequence[str] = (), *, folders: Sequence[Path] = ()) -> Config:
    """The resolved configuration as plain data.

    `overrides` are Hydra's; `experiment=folder/file` takes `experiments/folder/file.yaml` from the first of `folders`,
    the working directory, the repository or the package that has it. An argument of a `_target_` that the YAML does not
    list can be set like any other key.

    Raises:
        ConfigError: a misspelt key (the nearest one is named), a missing or wrong value, a `_target_` that is not
            allowed.

    >>> compose(["epochs=3", "model.width=0.5"])["epochs"]
    3
    """
    places = shipped_folders(folders)
    for text in overrides:
        _check_form(text)
    overrides = [_experiment(text, places) for text in overrides]
    groups = tuple(text for text in overrides if _is_group(text))
    values = [text for text in overrides if not _is_group(text)]
    search = f"hydra.searchpath=[{','.join(_quoted(f'file://{folder}') for folder in places)}]"
    known = _known((*groups, search))
    # What decides the signatures comes first: a `_target_` given as a value has arguments of its own.
    deciding = [_reachable(text, known) for text in values if _decides(text)]
    known = _known((*groups, *deciding, search))
    values = [text if _decides(text) else _reachable(text, known) for text in values]
    config = _with(_known((*groups, search)), values) or _hydra([*groups, *values, search])
    try:
        resolved: Config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'a key'} needs a value: {str(error).splitlines()[0]}") from error
    settings.check(resolved, _defaults())
    targets.check(resolved, resolved["allow"])
    return resolved


@functools.cache
def _known(overrides: tuple[str, ...]) -> DictConfig:
    """The keys there are, given the groups. Cached, since a study composes the same groups many times."""
    return _hydra(list(overrides))


def _with(config: DictConfig, values: Sequence[str]) -> DictConfig | None:
    """A copy of a composed configuration with values set as Hydra sets them, in a fifth of the time of composing anew.

    None for what is not `key=value` or cannot be set: Hydra does, or says what is wrong with it.
    """
    config = copy.deepcopy(config)
    try:
        for override in map(_parsed, values):
            if override.is_delete() or override.is_add() or override.is_sweep_override() or override.package:
                return None
            added = override.is_force_add()
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=added)
    except (HydraException, OmegaConfBaseException):
        return None
    return config


@functools.lru_cache(1024)
def _parsed(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


@functools.cache
def _defaults() -> Config:
    return OmegaConf.to_container(_hydra([]), resolve=False)  # type: ignore[return-value]


def _decides(text: str) -> bool:
    key = text.partition("=")[0]
    return key.startswith("+") or key == "allow" or key.endswith("._target_")


def _quoted(text: str) -> str:
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _check_form(text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals and not text.startswith("~"):
        raise ConfigError(f"expected key=value, got {text!r}")
    if _is_group(text) and equals and value in ("", "null"):
        group = key.lstrip("+").partition("@")[0]
        options = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        raise ConfigError(f"{key} must be one of {', '.join(options) or 'the experiments there are'}; got {value!r}")


def _experiment(text: str, places: Sequence[Path]) -> str:
    key, _, name = text.partition("=")
    if key != "experiment":
        return text
    roots = [place / "experiments" for place in places]
    if not any((root / f"{name}.yaml").is_file() for root in roots):
        known = [str(file.relative_to(root).with_suffix("")) for root in roots for file in sorted(root.rglob("*.yaml"))]
        raise unknown(name, known, where=f"the experiments of {', '.join(map(str, places))}")
    return f"+experiments={name}"


def _is_group(text: str) -> bool:
    key = text.lstrip("+~").partition("=")[0].partition("@")[0]
    return key == "experiments" or (CONF / key).is_dir()


def _hydra(overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            return hydra_compose("train", overrides=overrides)
    except OverrideParseException as error:
        raise ConfigError(
            f"cannot read the override {str(error.override).lstrip('+')!r}: {_readable(str(error))}; "
            "put text with spaces or signs in quotes, as key=\"'text'\""
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"a configuration file is not readable YAML: {' '.join(str(error).split())}") from error
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
    key, _, value = text.partition("=")
    if key[:1] in "+~":
        return text
    if _has(config, key):
        return text
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if parent == "trainer":
        return f"++{key}={value}"
    if isinstance(node, DictConfig) and "_target_" in node:
        known = signature({"_target_": node["_target_"]}, config.get("allow") or ())
        if leaf in known:
            return f"++{key}={value}"
        raise unknown(leaf, [*known], where=f"{node['_target_']} (at {parent})")
    error = unknown(key, _keys(config), where="the configuration")
    if isinstance(node, DictConfig) or not _has(config, parent):
        raise error
    raise ConfigError(f"{error}; {parent!r} is off: choose it, for example {parent.rpartition('.')[2]}=...")


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


def build(node: Config, allow: Sequence[str] = (), **offered: Any) -> Any:
    """The object that `node` describes; of `offered`, the arguments that its signature has and it does not set.

    Raises:
        ConfigError: not allowed, or it cannot be made of these arguments. A `ValueError` or `OSError` of the object
            itself passes through.

    >>> build({"_target_": "torch.nn.Linear", "in_features": 2}, out_features=3, unused=1)
    Linear(in_features=2, out_features=3, bias=True)
    """
    for _, inner in nodes(node):
        targets.resolve(inner["_target_"], targets.allowed(allow))
    _refuse_interpolation(node)
    known = signature(node, allow)
    extra = {key: value for key, value in offered.items() if key in known and node.get(key) is None}
    given = {key: value for key, value in node.items() if key not in extra}
    try:
        made = hydra_instantiate({**given, "_partial_": True}, _convert_="all")
        return partial(made, **extra) if node.get("_partial_") else made(**extra)
    except (ValueError, OSError):
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if isinstance(cause, ValueError | OSError):
            raise cause from None
        reason = " ".join(str(cause).split())
        raise ConfigError(f"cannot make {node['_target_']}: {type(cause).__name__}: {reason}") from error


def _refuse_interpolation(value: Any) -> None:
    """Hydra would resolve it once more, and it can spell a node that nothing has looked at."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_interpolation(inner)
    elif isinstance(value, str) and "${" in value:
        raise ConfigError(f"a value of a finished configuration must not hold ${{...}}; got {value!r}")
