"""What really goes wrong in a worker, by name: under `broken` the toy's config says in which run.

Each function is given the run's folder and returns numbers to put into the result. What ends in `_once` goes wrong only
when the run is begun first.
"""

import os
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path


def not_a_number(place: Path) -> dict[str, float]:
    return {"val/accuracy": float("nan")}


def infinite(place: Path) -> dict[str, float]:
    return {"val/accuracy": float("inf")}


def memory(place: Path) -> dict[str, float]:
    """Take all memory that the system gives, in ever smaller pieces: there is none left to say so either."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (32 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    taken: object = None
    for size in (1 << 16, 1 << 12, 1 << 8):
        with suppress(MemoryError):
            while True:
                taken = (bytes(size), taken)
    while True:
        taken = (bytes(1), taken)


def memory_once(place: Path) -> dict[str, float]:
    return memory(place) if _first(place) else {}


def hang(place: Path) -> dict[str, float]:
    """Never end, whatever is said politely."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(600)


def stand_still_once(place: Path) -> dict[str, float]:
    """Be stopped, again whenever something lets the process go on."""
    first = _first(place)
    while first:
        os.kill(os.getpid(), signal.SIGSTOP)
    return {}


def disk_once(place: Path) -> dict[str, float]:
    """Train on a disk that another program fills to the last byte, the folder of the study included."""
    if _first(place):
        fill(place.parents[2])
    return {}


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "ballast").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def _first(place: Path) -> bool:
    mark = place / "broke"
    first = not mark.exists()
    mark.touch()
    return first
