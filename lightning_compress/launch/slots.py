"""Which job gets which GPUs, and whether there is room for it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import final

from lightning_compress.launch.job import Resources

# Thirds add up to a little more than one.
_SLACK = 1e-9


@final
class Slots:
    """Room for `workers` jobs on `devices`, GPUs by number or UUID; shares of a GPU are packed, several are whole ones.

    Without `workers` the devices are the limit, and for jobs that take none `cores`.

    >>> slots = Slots(None, ["0", "1"], cores=8)
    >>> [slots.take(name, Resources(devices=0.5)) for name in "abcde"]
    [('0',), ('0',), ('1',), ('1',), None]
    """

    def __init__(self, workers: int | None, devices: Sequence[str], *, cores: int) -> None:
        _check_workers(workers)
        self._workers = workers
        self._cores = cores
        self._devices = tuple(devices)
        self._taken: dict[str, tuple[Resources, tuple[str, ...]]] = {}

    def check(self, resources: Resources) -> None:
        """Refuse what never fits.

        Raises:
            ValueError: the message says what it needs and what there is.
        """
        wanted, there = resources.devices, len(self._devices)
        if wanted < 0 or (wanted > 1 and wanted != int(wanted)):
            raise ValueError(f"a job takes a share of one GPU or whole ones: 0.5, 1, 2, ..., not {wanted:g}")
        if wanted > there:
            raise ValueError(f"the job needs {wanted:g} GPUs and there are {there}")
        if resources.cores < 1 or resources.processes < 1:
            raise ValueError(f"a job has at least one core and one process, not {resources}")
        if self._workers is None and not wanted and resources.cores > self._cores:
            raise ValueError(f"the job needs {resources.cores} cores and there are {self._cores}")

    def take(self, name: str, resources: Resources) -> tuple[str, ...] | None:
        """The GPUs for a job, or None while there is no room."""
        found = self.fit(resources)
        if found is not None:
            self._taken[name] = resources, found
        return found

    def free(self, name: str) -> None:
        """A job has ended; nothing where it took none."""
        self._taken.pop(name, None)

    def fit(self, resources: Resources) -> tuple[str, ...] | None:
        """The GPUs that the job would get, or None while there is no room."""
        if self._workers is not None and len(self._taken) >= self._workers:
            return None
        if not resources.devices:
            busy = sum(taken.cores for taken, found in self._taken.values() if not found)
            return () if self._workers is not None or busy + resources.cores <= self._cores else None
        load = self._load()
        share, count = min(resources.devices, 1.0), max(int(resources.devices), 1)
        fitting = [device for device in self._devices if load[device] + share <= 1 + _SLACK]
        # The fullest first, so that whole ones stay free.
        fitting.sort(key=lambda device: -load[device])
        return tuple(fitting[:count]) if len(fitting) >= count else None

    def emptiest(self, resources: Resources) -> tuple[str, ...]:
        """GPUs for a job that runs while all others stand still: those with the fewest jobs on them."""
        load = self._load()
        return tuple(sorted(self._devices, key=load.__getitem__)[: -int(-resources.devices // 1)])

    @property
    def workers(self) -> int:
        """Jobs that run at once, at most: as many as were asked for, or one for each device, or core."""
        return self._workers or len(self._devices) or self._cores

    def resize(self, workers: int) -> None:
        """Change the number of jobs at once.

        Raises:
            ValueError: fewer than one.
        """
        _check_workers(workers)
        self._workers = workers

    def _load(self) -> dict[str, float]:
        load = dict.fromkeys(self._devices, 0.0)
        for resources, devices in self._taken.values():
            for device in devices:
                load[device] += min(resources.devices, 1.0)
        return load


def discover() -> tuple[str, ...]:
    """The GPUs that this process may use; no CUDA context is made for that.

    >>> all(isinstance(name, str) for name in discover())
    True
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA itself stops at the first one that is none.
        stop = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return tuple(names[:stop])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    return tuple(str(number) for number in range(sum(line.startswith("GPU ") for line in listing)))


def usable_cores() -> int:
    """CPU cores that this process may run on.

    >>> usable_cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0))


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise ValueError(f"at least one worker is needed, not {workers}")
