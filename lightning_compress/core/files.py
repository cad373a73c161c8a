"""Files that a reader finds whole, old or new, and never half written, and by which hash they are known."""

import hashlib
import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Put `text` in the place of what `path` held; its folder is made where it is missing.

    Raises:
        OSError: there is no room, or no right to write; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any, *, sort_keys: bool = True) -> None:
    """Put `data` as JSON in the place of what `path` held.

    Raises:
        ValueError: a number in it is NaN or infinite.
        OSError: what `write_text` raises.
    """
    write_text(path, json.dumps(data, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
