"""What Linux says and does about processes: who dies with whom, whose child is whose, what ran out of memory."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def require() -> None:
    """Do nothing on Linux.

    Raises:
        RuntimeError: this is another system.

    >>> require()
    """
    if sys.platform != "linux":
        raise RuntimeError(f"local worker processes need Linux, this is {sys.platform}; use the launcher inline")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, the process `parent`, dies; at once if it is dead."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`."""
    _prctl(_SET_PDEATHSIG, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none can get away."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def children(parent: int) -> list[int]:
    """The child processes of a process, ended ones that nobody waited for included.

    >>> os.getpid() in children(os.getppid())
    True
    """
    return [pid for pid, above in _parents() if above == parent]


def killed_for_memory() -> int:
    """How many processes of this one's control group the kernel has killed because memory ran out.

    >>> killed_for_memory() >= 0
    True
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root, name = ("memory", "memory.oom_control") if controllers else ("", "memory.events")
            # In a container the path may be the host's; the container's own group is then the root.
            for folder in (Path("/sys/fs/cgroup", root, path.lstrip("/")), Path("/sys/fs/cgroup", root)):
                with suppress(OSError, StopIteration):
                    lines = (folder / name).read_text().splitlines()
                    return int(next(each.split()[1] for each in lines if each.startswith("oom_kill ")))
    return 0


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                # The name in brackets may hold spaces and brackets itself.
                yield int(entry), int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
