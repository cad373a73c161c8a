"""Jobs in processes of this machine, each on its own GPUs or cores."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from signal import SIGKILL
from typing import Any, final

from lightning_compress.launch import call, ending, linux
from lightning_compress.launch.job import Cause, Job, Outcome, Resources
from lightning_compress.launch.server import Server
from lightning_compress.launch.slots import Slots, discover, usable_cores

# What makes a process a rank of a training; a job is none of its driver's.
_RANK = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_REASONS: dict[str, tuple[Cause, str]] = {"cancelled": ("cancelled", "stopped on request")}


@final
class LocalHandle:
    """A job that waits, runs or has ended."""

    def __init__(self, launcher: "Local", job: Job, number: int) -> None:
        self._launcher = launcher
        self.job = job
        self.number = number
        self.job_file = call.write(job)
        self.pid: int | None = None
        self.outcome: Outcome | None = None
        self.killed_before = 0

    @property
    def id(self) -> str:
        """The number of its process; empty while it waits."""
        self._launcher.refresh()
        return "" if self.pid is None else str(self.pid)

    def poll(self) -> Outcome | None:
        """How the job ended, or None while it runs or waits."""
        if self.outcome is None:
            self._launcher.refresh()
        return self.outcome

    def cancel(self) -> None:
        """Kill the job and everything it started, or take it out of the queue."""
        self._launcher.cancel(self)

    def end(self, code: int, stopped: tuple[Cause, str] | None) -> None:
        """Say how it ended, by the exit `code` of its process or why it was `stopped`."""
        starved = linux.killed_for_memory() > self.killed_before
        self.outcome = ending.ended(self.job_file.parent, code, stopped=stopped, starved=starved)


@final
class Local:
    """Runs jobs in processes forked from one that has imported `preload`, `workers` of them at once.

    A job sees only its own of the GPUs `devices`, by default all that this process may use; two jobs of half a GPU
    share one. Without `workers` there is one job per GPU, or share of it, and one per core for jobs without.
    An exclusive job starts at once: all others stand still until it has ended, and their timeouts with them.
    No process outlives `close`, or the driver, however that ends. A job with several processes, a training on several
    ranks, gets a fresh one, whose command line the ranks run again.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> launcher = Local(workers=1, devices=[], preload=[])
    >>> with TemporaryDirectory() as folder:
    ...     handle = launcher.submit(Job("mean", "statistics:mean", {"data": [1, 3]}, Path(folder)))
    ...     while handle.poll() is None:
    ...         pass
    ...     launcher.close()
    >>> handle.poll()
    Outcome(cause='done', detail='', value=2)

    Raises:
        RuntimeError: this is not Linux.
    """

    def __init__(
        self,
        workers: int | None = None,
        devices: Sequence[int | str] | None = None,
        preload: Sequence[str] = ("torch", "pytorch_lightning"),
    ) -> None:
        linux.require()
        names = discover() if devices is None else tuple(map(str, devices))
        self._slots = Slots(workers, names, cores=usable_cores())
        self._preload = tuple(preload)
        self._server: Server | None = None
        self._numbers = count()
        self._waiting: list[LocalHandle] = []
        self._running: dict[int, LocalHandle] = {}

    @property
    def patience(self) -> float:
        """The driver polls while a job runs; one that does not for this long is doing something else."""
        return 600.0

    @property
    def workers(self) -> int:
        """Jobs that run at once, at most."""
        return self._slots.workers

    def has_room(self, resources: Resources) -> bool:
        """Whether a job submitted now would start at once.

        Raises:
            ValueError: it can never run here.
        """
        self._slots.check(resources)
        self.refresh()
        if self._timing():
            return False
        return resources.exclusive or (not self._waiting and self._slots.fit(resources) is not None)

    def submit(self, job: Job) -> LocalHandle:
        """Start a job, or queue it where there is no room; a queued one starts when any job is polled.

        Raises:
            ValueError: the job can never run here, is not plain JSON data, or has the name of one that runs.
        """
        self._slots.check(job.resources)
        self.refresh()
        if any(job.name == other.job.name for other in (*self._waiting, *self._running.values())):
            raise ValueError(f"a job named {job.name!r} runs already")
        handle = LocalHandle(self, job, next(self._numbers))
        self._waiting.append(handle)
        self._start_waiting()
        return handle

    def resize(self, workers: int) -> None:
        """Change the number of jobs that run at once; those that run go on.

        Raises:
            ValueError: fewer than one.
        """
        self._slots.resize(workers)
        self._start_waiting()

    def close(self) -> None:
        """Stop all jobs; when it returns no process of this launcher is left."""
        waiting, self._waiting = self._waiting, []
        self.refresh()
        if self._server is not None:
            self._server.stop()
            self._server = None
        for handle in (*waiting, *self._running.values()):
            self._ended(handle, 0, _REASONS["cancelled"])

    def cancel(self, handle: LocalHandle) -> None:
        """Kill a job of this launcher and everything it started, or take it out of the queue."""
        self.refresh()
        if handle in self._waiting:
            self._waiting.remove(handle)
            handle.end(0, _REASONS["cancelled"])
        if handle.outcome is None and self._server is not None:
            self._server.send(kill=handle.number)
        while handle.outcome is None:
            self._receive(wait=True)
        self._start_waiting()

    def refresh(self) -> None:
        """See what has ended, and start what waits for that."""
        self._receive()
        self._start_waiting()

    def _receive(self, *, wait: bool = False) -> None:
        if self._server is None:
            return
        for event in self._server.events(wait=wait):
            handle = self._running[event["number"]]
            if "pid" in event:
                handle.pid = event["pid"]
            elif "failed" in event:
                self._ended(handle, 1, ("crash", f"cannot start a process: {event['failed']}"))
            else:
                self._ended(handle, event["code"], self._reason(handle, event["stopped"]))
        if self._server.dead:
            self._lose()

    def _reason(self, handle: LocalHandle, stopped: str | None) -> tuple[Cause, str] | None:
        if stopped == "timeout":
            return "timeout", f"stopped after {handle.job.resources.timeout:g} s"
        return None if stopped is None else _REASONS[stopped]

    def _lose(self) -> None:
        """The server was killed; the kernel has killed its jobs, and what these had started is left to us."""
        assert self._server is not None
        self._server.stop()
        self._server = None
        for handle in list(self._running.values()):
            if handle.pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(handle.pid, SIGKILL)
            self._ended(handle, -SIGKILL, ("crash", "the process that jobs are forked from was killed"))

    def _ended(self, handle: LocalHandle, code: int, stopped: tuple[Cause, str] | None) -> None:
        self._running.pop(handle.number, None)
        self._slots.free(handle.job.name)
        handle.end(code, stopped)

    def _timing(self) -> bool:
        return any(handle.job.resources.exclusive for handle in self._running.values())

    def _start_waiting(self) -> None:
        """The exclusive ones first, as they need no room; the others in turn, so that a big one is not passed over."""
        for handle in sorted(self._waiting, key=lambda handle: not handle.job.resources.exclusive):
            if self._timing():
                return
            wanted = handle.job.resources
            if wanted.exclusive:
                devices = self._slots.emptiest(wanted)
            else:
                found = self._slots.take(handle.job.name, wanted)
                if found is None:
                    return
                devices = found
            self._waiting.remove(handle)
            self._start(handle, devices)

    def _start(self, handle: LocalHandle, devices: tuple[str, ...]) -> None:
        if self._server is None:
            self._server = Server(self._preload)
        wanted = handle.job.resources
        handle.killed_before = linux.killed_for_memory()
        self._running[handle.number] = handle
        self._server.send(
            number=handle.number,
            job_file=str(handle.job_file),
            environment=_environment(wanted, devices),
            cwd=os.getcwd(),
            exclusive=wanted.exclusive,
            timeout=wanted.timeout,
            fresh=wanted.processes > 1,
        )


def _environment(wanted: Resources, devices: Sequence[str]) -> dict[str, Any]:
    """The driver's, with the job's own GPUs and threads."""
    threads = max(wanted.cores // wanted.processes, 1)
    own = {"CUDA_VISIBLE_DEVICES": ",".join(devices), "OMP_NUM_THREADS": str(threads)}
    if wanted.processes > 1:
        # For the fresh interpreter and its ranks, which know nothing else of where the driver imports from.
        own["PYTHONPATH"] = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    return {**{name: value for name, value in os.environ.items() if name not in _RANK}, **own}
