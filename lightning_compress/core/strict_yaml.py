"""YAML as Hydra reads it: 1e-3 is a number, and a key written twice is an error."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]


def load(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: the file is no readable YAML, or has a key twice.
        OSError: the file cannot be read.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error


def parse(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: the text is no YAML, or has a key twice.

    >>> parse("lr: 1e-3")
    {'lr': 0.001}
    """
    return yaml.load(text, Loader=_Loader)


def unknown(name: str, known: Iterable[str], where: str) -> str:
    """Says that a name is not there, and which one to write instead.

    >>> unknown("sede", ["seeds", "title"], "a row")
    "'sede' is not in a row: did you mean 'seeds'?"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(names) or 'none, there is none'}"
    return f"{name!r} is not in {where}: {hint}"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
