"""The launchers that the conformance suite runs over: one row each."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest

from lightning_compress.launch.inline import Inline
from lightning_compress.launch.job import Handle, Job, Launcher, Outcome, Resources
from lightning_compress.launch.local import Local
from lightning_compress.launch.ray import Ray
from lightning_compress.launch.slurm import Slurm


@final
@dataclass(frozen=True)
class Case:
    """How to make a launcher for so many workers, with a folder for its own files, and what it `cannot` do.

    process: a job has no process of its own, that could die, be cancelled, have an environment; timeout; beside: jobs
    do not run side by side; freeze: an exclusive job waits until others have ended. `seconds` is how long a job may
    take to start. `cluster` is the fixture that makes the cluster which the launcher needs.
    """

    make: Callable[[int, Path], Launcher]
    cannot: frozenset[str] = frozenset()
    seconds: float = 20.0
    cluster: str = ""

    def needs(self, *abilities: str) -> None:
        missing = self.cannot.intersection(abilities)
        if missing:
            pytest.skip(f"this launcher cannot: {', '.join(sorted(missing))}")


LAUNCHERS: dict[str, Case] = {
    "inline": Case(lambda workers, folder: Inline(), frozenset({"process", "timeout", "beside", "freeze"})),
    "local": Case(lambda workers, folder: Local(workers, devices=[], preload=())),
    "slurm": Case(lambda workers, folder: Slurm(workers, folder), frozenset({"freeze"}), 60.0, "slurm"),
    "ray": Case(lambda workers, folder: Ray(workers, os.environ["RAY_ADDRESS"]), frozenset({"freeze"}), 60.0, "ray"),
}


def job(folder: Path, function: str, name: str = "job", /, *, wants: Resources | None = None, **arguments: Any) -> Job:
    return Job(name, f"tests.launch.jobs:{function}", arguments, folder / name, wants or Resources())


def wait(*handles: Handle, seconds: float = 20.0) -> list[Outcome]:
    """How they all end."""
    end = time.monotonic() + seconds
    while True:
        outcomes = [handle.poll() for handle in handles]
        ended = [outcome for outcome in outcomes if outcome is not None]
        if len(ended) == len(handles):
            return ended
        assert time.monotonic() < end, f"still running after {seconds} s: {outcomes}"
        time.sleep(0.01)


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(folder: Path) -> list[int]:
    """Those that the job `family` wrote down."""
    return [int(path.name) for path in folder.glob("pids/*")]
