"""One run in several processes: all train, the first one measures, writes and logs."""

import os
import time
from pathlib import Path
from typing import TypeVar

from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import distributed as dist

_PAUSE = 0.2
T = TypeVar("T")


def is_first() -> bool:
    """Whether this process measures, writes and logs; a process on its own does.

    >>> is_first()
    True
    """
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def shared(value: T) -> T:
    """The first process's `value`, on each of them; all have to call it.

    >>> shared(3)
    3
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: T) -> list[T]:
    """The `value` of each process, in order of rank, on each of them; all have to call it.

    >>> gathered(3)
    [3]
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def part() -> None:
    """End the processes' group: what follows training is one process's work, and loaders and metrics must see all data.

    >>> part()
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def wait_for(path: Path) -> None:
    """Return when the first process has written `path`.

    Raises:
        SystemExit: it ended before.
    """
    parent = os.getppid()
    while not path.exists():
        if os.getppid() != parent:
            raise SystemExit(1)
        time.sleep(_PAUSE)
