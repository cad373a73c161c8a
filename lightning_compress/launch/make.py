"""The launcher of a name; SLURM's and Ray's libraries are imported only when they are chosen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_compress.launch.inline import Inline
from lightning_compress.launch.job import Launcher
from lightning_compress.launch.local import Local
from lightning_compress.launch.slots import discover

#: What a local worker has imported before its first job: all that a run needs.
PRELOAD = ("lightning_compress.run.worker", "wandb")


def make(
    name: str,
    *,
    workers: int | None = None,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    preload: tuple[str, ...] = PRELOAD,
) -> Launcher:
    """The launcher called `name`: inline, local, slurm or ray; `folder` is where its own files go.

    Raises:
        ValueError: no launcher of that name, `options` that it does not have, or a library that is not installed.

    >>> make("inline", folder=Path("runs")).patience
    0.0
    """
    given = dict(options or {})
    if name == "inline":
        _refuse(name, given)
        return Inline()
    if name == "local":
        _refuse(name, given)
        return Local(workers, preload=preload)
    if name == "slurm":
        from lightning_compress.launch.slurm import Slurm

        return _installed(lambda: Slurm(workers or 1, folder, given))
    if name == "ray":
        from lightning_compress.launch.ray import Ray

        return _installed(lambda: Ray(workers, given.pop("address", None), given))
    raise ValueError(f"launcher must be inline, local, slurm or ray; got {name!r}")


def devices(name: str) -> float:
    """GPUs that a run gets where nobody says: one, where this machine has one and runs are run on it.

    >>> devices("slurm")
    0.0
    """
    return 1.0 if name in ("inline", "local") and discover() else 0.0


def _installed(start: Callable[[], Launcher]) -> Launcher:
    try:
        return start()
    except ImportError as error:
        raise ValueError(str(error)) from error


def _refuse(name: str, options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(f"launch, options: the launcher {name!r} has none, got {', '.join(options)}")
