"""Words to a running driver, left in the study's folder: stop, or add workers."""

import json
import os
import socket
from pathlib import Path
from typing import Any, final

import filelock

from lightning_compress.core.files import write_json

FILE, DRIVER = "control.json", "driver.json"


class Stopped(KeyboardInterrupt):
    """The study was asked to stop; what is running goes on from its last checkpoint when it is resumed."""


def lock(folder: Path) -> filelock.BaseFileLock:
    """The lock that a driver holds; it lies beside the folder, which `--fresh` moves."""
    return filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=0)


def is_driven(folder: Path) -> bool:
    """Whether a process is driving the study in `folder`, on this machine or on one that shares its file system."""
    if not (folder.parent / f".{folder.name}.lock").exists():
        return False
    try:
        with lock(folder):
            return False
    except filelock.Timeout:
        return True


def ask(folder: Path, **words: Any) -> None:
    """Leave word for the driver of the study in `folder`.

    Raises:
        ValueError: nobody drives it.
    """
    if not is_driven(folder):
        raise ValueError(f"no process is running the study in {folder}: `lightning-compress sweep resume` starts one")
    write_json(folder / FILE, words)


@final
class Words:
    """The driver's side: says who drives, and reads what was left."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._path.unlink(missing_ok=True)
        write_json(folder / DRIVER, {"pid": os.getpid(), "host": socket.gethostname()})

    def read(self) -> int:
        """The number of workers to add, each word is read once.

        Raises:
            Stopped: the word was to stop.
        """
        if not self._path.exists():
            return 0
        words: dict[str, Any] = json.loads(self._path.read_text())
        self._path.unlink()
        if words.get("stop"):
            raise Stopped("the study was asked to stop; `sweep resume` goes on from the last checkpoints")
        return int(words.get("add", 0))
