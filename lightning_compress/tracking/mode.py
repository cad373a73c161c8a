"""Where W&B runs go: the modes by name, the sentence that says so, and what is known of a server that does not answer.

Nothing here imports wandb.
"""

import difflib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

ModeName = Literal["online", "offline", "disabled"]

# After a run could not start online the runs of the same folder stay offline for so long, each without a try.
OUTAGE_SECONDS = 600.0

_MODES: dict[str, ModeName | None] = {
    "auto": None,
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


@final
@dataclass(frozen=True)
class Mode:
    """Where runs go, and the sentence that tells the user so and how to upload them later.

    Example:
        >>> Mode("disabled", "W&B is off.").name
        'disabled'
    """

    name: ModeName
    sentence: str


def mode_named(wanted: str) -> ModeName | None:
    """The mode asked for, None where it is left to whether there is a login; auto is what WANDB_MODE says.

    Raises:
        ValueError: the mode is unknown.

    Example:
        >>> mode_named("offline")
        'offline'
    """
    asked = wanted if wanted != "auto" else os.environ.get("WANDB_MODE") or "auto"
    if asked not in _MODES:
        near = difflib.get_close_matches(asked, _MODES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown W&B mode {asked!r}: expected auto, online, offline or disabled{hint}")
    return _MODES[asked]


def announced(name: ModeName, folder: Path, reason: str = "as asked") -> Mode:
    """The mode called `name` for the runs kept under `folder`, with its sentence; `reason` says why it is offline.

    Example:
        >>> announced("online", Path("runs")).sentence
        'W&B logs online (you are logged in); a copy stays in runs/wandb.'
    """
    if name == "disabled":
        return Mode(name, "W&B is off.")
    if name == "online":
        return Mode(name, f"W&B logs online (you are logged in); a copy stays in {folder / 'wandb'}.")
    return Mode(
        name, f"W&B logs offline ({reason}). To upload: `wandb login`, then `lightning-compress sync {folder}`."
    )


def note_outage(folder: Path) -> None:
    """Remember that the server did not take a run of `folder` just now."""
    _outage(folder).touch()


def in_outage(folder: Path) -> bool:
    """Whether the server refused a run of `folder` a short while ago."""
    try:
        return time.time() - _outage(folder).stat().st_mtime < OUTAGE_SECONDS
    except OSError:
        return False


@contextmanager
def inside(folder: Path, **more: str) -> Iterator[None]:
    """Keep what W&B stages and caches inside `folder`, its greetings off the terminal and its service to ourselves.

    A process finds the W&B service of its parent through WANDB_SERVICE and fails if that one is gone. Without it each
    process starts its own, so that a trial outlives the driver and one crash does not reach the others. W&B's reports
    on its own health are off: with a server that hangs they hold up the end of every process by 12 s.
    """
    place = folder.resolve() / "wandb"
    wanted = {
        "WANDB_DATA_DIR": str(place / "data"),
        "WANDB_CACHE_DIR": str(place / "cache"),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        **more,
    }
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.pop("WANDB_SERVICE", None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.pop("WANDB_SERVICE", None)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def one_line(error: Exception) -> str:
    """What an exception says, on one line; its name where it says nothing.

    Example:
        >>> one_line(ValueError("a  b"))
        'a b'
    """
    return " ".join(str(error).split()) or type(error).__name__


def _outage(folder: Path) -> Path:
    return folder / "wandb" / "outage"
