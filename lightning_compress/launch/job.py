"""What a launcher runs and what it says of it: a function by name with plain arguments, and how that ended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, final

Cause = Literal["done", "error", "memory", "disk", "crash", "timeout", "preempted", "cancelled"]


@final
@dataclass(frozen=True)
class Resources:
    """What one job needs: `devices` GPUs (a share of one, one, or several), CPU `cores`, `timeout` in seconds.

    `processes` is the number of ranks that it trains in, on those devices or cores together. An `exclusive` job never
    runs beside another one of its launcher: a timing.

    >>> Resources(devices=0.5).cores
    1
    """

    devices: float = 0.0
    cores: int = 1
    processes: int = 1
    timeout: float | None = None
    exclusive: bool = False


@final
@dataclass(frozen=True)
class Job:
    """A call of `target`, written `package.module:function`, with `arguments` as keywords, both plain JSON data.

    `name` is unique among the jobs that run; `folder` is where the job's own files go (what it printed, how it
    ended), on a file system that driver and worker share.

    >>> Job("sum", "math:fsum", {"seq": [1.0, 2.0]}, Path("jobs/sum")).resources.exclusive
    False
    """

    name: str
    target: str
    arguments: dict[str, Any]
    folder: Path
    resources: Resources = field(default_factory=Resources)


@final
@dataclass(frozen=True)
class Outcome:
    """How a job ended: its `cause`, one line of `detail` where it is not done, the JSON data that was returned.

    error: the function raised; memory: out of memory, on the device or the host; disk: no space left; crash: the
    process died; timeout, preempted, cancelled: it was stopped.

    >>> Outcome("done", value=3.0).detail
    ''
    """

    cause: Cause
    detail: str = ""
    value: Any = None


class Handle(Protocol):
    """One submitted job; `id` is what its launcher calls it: a process or a cluster's job number."""

    @property
    def id(self) -> str:
        """The launcher's own name for the job."""

    def poll(self) -> Outcome | None:
        """How the job ended, or None while it runs or waits; never blocks."""

    def cancel(self) -> None:
        """Stop the job and everything it started; `poll` then says how it ended. Nothing happens to an ended one."""


class Launcher(Protocol):
    """Runs jobs; used from one thread."""

    @property
    def patience(self) -> float:
        """Seconds for which a job may wait for word from the driver; 0: the driver is not there while a job runs."""

    @property
    def workers(self) -> int:
        """Jobs that run at once, at most."""

    def has_room(self, resources: Resources) -> bool:
        """Whether a job submitted now would start at once."""

    def submit(self, job: Job) -> Handle:
        """Start a job, or queue it where there is no room.

        Raises:
            ValueError: the job can never run here; the message says what it needs and what there is.
        """

    def resize(self, workers: int) -> None:
        """Change the number of jobs that run at once; those that run go on."""

    def close(self) -> None:
        """Stop all jobs; when it returns no process of this launcher is left."""
