"""One run in several processes: all train, the first one measures, writes and logs."""

import os
import time
from pathlib import Path

from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import distributed as dist

_PAUSE = 0.2


def is_first() -> bool:
    """Whether this process measures, writes and logs; a process on its own does.

    >>> is_first()
    True
    """
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


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
