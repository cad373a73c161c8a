"""Jobs in this process, one after the other: for finding mistakes, and for machines that allow nothing else."""

import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import final

from lightning_compress.launch import call, ending
from lightning_compress.launch.job import Job, Outcome, Resources


@final
@dataclass(frozen=True)
class Finished:
    """A job that ran while it was submitted."""

    id: str
    outcome: Outcome

    def poll(self) -> Outcome:
        """How the job ended."""
        return self.outcome

    def cancel(self) -> None:
        """Nothing is left to stop."""


@final
class Inline:
    """Runs each job while it is submitted, with the devices and threads of this process; there is no timeout.

    >>> Inline().has_room(Resources(devices=8))
    True
    """

    @property
    def patience(self) -> float:
        """None: the driver waits for the job."""
        return 0.0

    @property
    def workers(self) -> int:
        """Jobs that run at once, at most."""
        return 1

    def has_room(self, resources: Resources) -> bool:
        """Always: a job is over when `submit` returns."""
        return True

    def submit(self, job: Job) -> Finished:
        """Run the job.

        Raises:
            ValueError: it needs several processes, or it is not plain JSON data.
        """
        if job.resources.processes > 1:
            raise ValueError(f"job {job.name!r} needs {job.resources.processes} processes; the launcher inline has one")
        job_file = call.write(job)
        with (job_file.with_name(call.LOG)).open("a") as log, redirect_stdout(log), redirect_stderr(log):
            code = call.run(job_file)
        return Finished(str(os.getpid()), ending.ended(job_file.parent, code))

    def resize(self, workers: int) -> None:
        """Nothing: one job runs at a time."""

    def close(self) -> None:
        """Nothing: no job runs."""
