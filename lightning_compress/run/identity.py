"""Whose folder it is: a run is known again by its configuration, wherever the run and its data lie."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_compress.core.files import write_json
from lightning_compress.run.result import FILE
from lightning_compress.run.targets import Config, ConfigError

CONFIG, PLACE = "config.json", "place.json"
#: Where things are found, which decides nothing.
_WHEREABOUTS = {"data": ("root", "cache_dir"), "teacher": ("folder", "outputs")}


def is_same(config: Config, folder: Path) -> bool:
    """Whether `folder` was claimed by a run of this configuration; where it logs and where things lie does not matter.

    Absolute paths are the same if they are equal, or lie alike as seen from the run's folder, now and when it was
    claimed.

    Raises:
        ConfigError: the folder holds a run of another configuration, or its configuration is damaged.
    """
    path = folder / CONFIG
    if not path.exists():
        return False
    before, paths = _read(path), _read(folder / PLACE).get("paths", {})
    # Numbers of a finished run are not taken again; before that it does not matter how they will be.
    free = {"wandb"} if (folder / FILE).exists() else {"wandb", "measure"}
    now = json.loads(json.dumps(config))

    def same(old: Any, new: Any) -> bool:
        if isinstance(old, dict) and isinstance(new, dict):
            return old.keys() == new.keys() and all(same(old[key], new[key]) for key in new)
        if isinstance(old, list) and isinstance(new, list):
            return len(old) == len(new) and all(map(same, old, new))
        return bool(old == new) or (isinstance(new, str) and paths.get(str(old)) == _seen_from(folder, new))

    differing = [
        key for key in now if key not in free and not same(deciding(key, before.get(key)), deciding(key, now[key]))
    ]
    if differing and ((folder / FILE).exists() or any(folder.glob("phase*"))):
        raise ConfigError(
            f"{folder} holds a run of another configuration (it differs in {', '.join(differing)}); "
            "choose another folder, or remove it"
        )
    return not differing


def claim(config: Config, folder: Path) -> str:
    """Make the folder this configuration's own; returns the digest that tells it from runs of the same name.

    Raises:
        ConfigError: nothing can be written there.
    """
    known = _read(folder / PLACE).get("digest")
    digest: str = known or hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    paths = {text: _seen_from(folder, text) for text in _texts(config) if os.path.isabs(text)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config)
        write_json(folder / PLACE, {"digest": digest, "paths": paths})
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    return digest


def _read(path: Path) -> Any:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); move the folder away to start over") from error


def deciding(key: str, value: Any) -> Any:
    """The value of a key of a configuration without what only says where things are found, or that something is off.

    >>> deciding("data", {"source": "mnist", "root": "data"})
    {'source': 'mnist'}
    """
    if key == "phases" and isinstance(value, list):
        return [{name: deciding(name, inner) for name, inner in phase.items()} for phase in value]
    if not isinstance(value, dict):
        return value
    off = {name for name, inner in value.items() if key in ("methods", "teacher") and inner in (None, {})}
    return {name: inner for name, inner in value.items() if name not in off.union(_WHEREABOUTS.get(key, ()))}


def _seen_from(folder: Path, text: str) -> str:
    return os.path.relpath(os.path.realpath(text), os.path.realpath(folder)) if os.path.isabs(text) else text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
