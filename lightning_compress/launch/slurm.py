"""Jobs on a Slurm cluster: the only file that imports submitit, which writes and submits the batch scripts.

How a job ended is read from its folder; what became of one that left nothing there is asked of `squeue`, once a second
for all jobs, so neither accounting nor a word from the compute node is needed.
"""

import difflib
import hashlib
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from lightning_compress.launch import call, ending
from lightning_compress.launch.job import Cause, Job, Outcome, Resources
from lightning_compress.launch.squeue import ENDS, LIVE, Queue

_GRACE = 10.0  # seconds that a shared file system may take to show what a job wrote last
_TRIES = 5
_ASKED: tuple[Cause, str] = ("cancelled", "stopped on request")
_OURS = {"job_name", "nodes", "ntasks_per_node", "cpus_per_task", "gpus_per_node", "comment", "stderr_to_stdout"}
_PASSING = re.compile("unable to contact slurm controller|timed out|temporar|try again|connection refused", re.I)
# What names the tasks of a job step; Lightning would take it for the layout of its own processes.
_RANKS = {"RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_KEPT = {"SLURM_JOB_ID", "SLURM_TMPDIR"}


def _start(job_file: str, threads: int) -> None:
    """Become the job's own process: no signal handlers of submitit, which would requeue it, no layout of Slurm's."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    environment = {name: value for name, value in os.environ.items() if name in _KEPT or not _layout(name)}
    command = [sys.executable, "-u", "-m", call.__name__, job_file]
    os.execve(sys.executable, command, environment | {"OMP_NUM_THREADS": str(threads)})


def _layout(name: str) -> bool:
    return name.startswith("SLURM_") or name in _RANKS


@final
class SlurmJob:
    """A job that waits here for its turn, is in Slurm's queue, runs or has ended; `id` is its number there."""

    def __init__(self, launcher: "Slurm", job: Job, job_file: Path) -> None:
        self.id = ""
        self.job, self.job_file = job, job_file
        self.outcome: Outcome | None = None
        self.refused: ValueError | None = None
        self.stopped: tuple[Cause, str] | None = None
        self._launcher = launcher
        self._submitted = math.inf
        self._running: float | None = None
        self._left: float | None = None

    def poll(self) -> Outcome | None:
        """How the job ended, or None while it waits or runs."""
        if self.outcome is None:
            self._launcher.refresh()
        return self.outcome

    def cancel(self) -> None:
        """Take the job out of the queue or end its processes; nothing happens to an ended one."""
        if self.poll() is None:
            self._launcher.cancel(self)

    def submitted(self, number: str) -> None:
        """It is in the queue now, under this number."""
        self.id, self._submitted = number, time.monotonic()

    def look(self, queue: Queue) -> None:
        """See whether it has ended."""
        self.outcome = call.read(self.job_file.parent) or self._from(queue)

    def stop(self, cause: Cause, detail: str) -> None:
        """Have Slurm end it."""
        self.stopped = self.stopped or (cause, detail)
        subprocess.run(["scancel", self.id], capture_output=True)

    def _from(self, queue: Queue) -> Outcome | None:
        state, code = queue.state(self.id, since=self._submitted) or ("PENDING", 0)
        if state == "RUNNING":
            self._watch_time()
        if state in LIVE:
            return None
        self._left = self._left or time.monotonic()
        # One that was stopped has nothing more to say.
        if self.stopped is None and time.monotonic() - self._left < _GRACE:
            return None
        return ending.ended(self.job_file.parent, code, stopped=self.stopped or ENDS.get(state))

    def _watch_time(self) -> None:
        # Slurm counts in minutes, and its limit is only there for the case that no driver is.
        now = time.monotonic()
        self._running = self._running or now
        timeout = self.job.resources.timeout
        if timeout is not None and now - self._running > timeout:
            self.stop("timeout", f"stopped after {timeout:g} s")


def _minutes(timeout: float | None) -> int | None:
    """Slurm's time limit: a whole minute after ours, so that ours is the one that ends the job.

    >>> _minutes(90)
    3
    """
    return None if timeout is None else math.ceil(timeout / 60) + 1


def _checked(options: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    for name in options:
        if name in _OURS:
            raise ValueError(f"slurm option {name!r} is set by the launcher for each job: leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"submitit has no slurm option {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; "
                "sbatch's other options go under additional_parameters"
            )
    return dict(options)


@final
class Slurm:
    """Jobs in the queue of a Slurm cluster, `workers` of them waiting or running at once.

    The jobs of a sweep share a name made from `folder`. Making a launcher cancels those that a driver which died left
    there: their work goes on from the checkpoints when it is submitted again. A preempted job is never requeued.

    Args:
        workers: jobs that wait or run at once.
        folder: of the sweep, on a file system that the compute nodes share.
        options: submitit's names for what `sbatch` takes: partition, account, qos, mem, setup, use_srun, ...;
            `time` in minutes holds for jobs without a timeout of their own; additional_parameters for all others.

    Raises:
        FileNotFoundError: this machine has no `sbatch`.
        ImportError: submitit is not installed.
        ValueError: an option is not known, or the launcher sets it itself.
    """

    def __init__(self, workers: int, folder: Path, options: Mapping[str, Any] | None = None) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise ImportError(f"the slurm launcher needs submitit: pip install submitit ({error})") from error
        missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is not on this machine: start the sweep where jobs are submitted")
        self._executor = submitit.SlurmExecutor
        self._options = _checked(options or {}, submitit.SlurmExecutor._valid_parameters())
        self._workers = workers
        where = folder.resolve()
        plain = re.sub(r"[^\w.-]", "-", where.name)
        self._name = f"{plain}-{hashlib.sha256(str(where).encode()).hexdigest()[:8]}"
        self._queue = Queue(self._name)
        self._waiting: list[SlurmJob] = []
        self._jobs: list[SlurmJob] = []
        self._fitting: set[Resources] = set()
        # What a driver that died has left: two runs of one trial would write the same files.
        self._queue.empty()

    @property
    def patience(self) -> float:
        """A minute: the driver may be slow to see a file on a network file system."""
        return 60.0

    @property
    def workers(self) -> int:
        """Jobs that run at once, at most."""
        return self._workers

    def has_room(self, resources: Resources) -> bool:
        """Whether fewer than `workers` jobs are in Slurm's queue; when it starts one is its own affair."""
        self.refresh()
        return not self._waiting and len(self._jobs) < self._workers

    def submit(self, job: Job) -> SlurmJob:
        """Put the job into Slurm's queue, or keep it for later where `workers` jobs are there.

        Raises:
            ValueError: Slurm refuses the job; the message is what it says.
            ConnectionError: Slurm's controller does not answer.
        """
        handle = SlurmJob(self, job, call.write(job))
        self._waiting.append(handle)
        self.refresh()
        if handle.refused is not None:
            raise handle.refused
        return handle

    def refresh(self) -> None:
        """See what has ended, and submit what waits for that."""
        for handle in self._jobs:
            handle.look(self._queue)
        self._jobs = [handle for handle in self._jobs if handle.outcome is None]
        while self._waiting and len(self._jobs) < self._workers:
            handle = self._waiting.pop(0)
            try:
                self._sbatch(handle)
            except ValueError as error:
                handle.outcome, handle.refused = Outcome("error", str(error)), error
            else:
                self._jobs.append(handle)

    def cancel(self, handle: SlurmJob) -> None:
        """Stop a job of this launcher, or take it out of the queue."""
        if handle in self._waiting:
            self._waiting.remove(handle)
            handle.outcome = Outcome(*_ASKED)
        else:
            handle.stop(*_ASKED)

    def _parameters(self, job: Job) -> dict[str, Any]:
        needs = job.resources
        log = str(job.folder.absolute() / call.LOG).replace("%", "%%")
        path = shlex.quote(os.pathsep.join(os.path.abspath(each) for each in sys.path))
        more = {"no-requeue": True, **(self._options.get("additional_parameters") or {}), "output": log}
        parameters: dict[str, Any] = {
            # The batch script is the job: an out-of-memory kill in a step of srun's would not show in its state.
            "use_srun": False,
            "wckey": None,
            "time": None,
            **self._options,
            # The node imports from where the driver does.
            "setup": [f"export PYTHONPATH={path}", *(self._options.get("setup") or ())],
            "job_name": self._name,
            "comment": job.name,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": needs.cores,
            "stderr_to_stdout": True,
            "additional_parameters": more,
        }
        if needs.devices:
            parameters["gpus_per_node"] = math.ceil(needs.devices)
        if needs.timeout is not None:
            parameters["time"] = _minutes(needs.timeout)
        if needs.exclusive:
            parameters["exclusive"] = True
        return parameters

    def _sbatch(self, handle: SlurmJob) -> None:
        job, folder = handle.job, handle.job_file.parent
        executor = self._executor(folder=folder / "slurm", python=f"exec {shlex.quote(sys.executable)}")
        executor.update_parameters(**self._parameters(job))
        submitted = self._patiently(executor, handle)
        handle.submitted(submitted.job_id)
        if job.resources in self._fitting:
            return
        # Most clusters take a job that no node of the partition can hold, and let it wait for ever.
        script = str(submitted.paths.submission_file)
        tested = subprocess.run(["sbatch", "--test-only", script], capture_output=True, text=True)
        if tested.returncode != 0 and not _PASSING.search(tested.stderr):
            handle.stop(*_ASKED)
            raise ValueError(f"slurm has no place for job {job.name!r} ({job.resources}): {tested.stderr.strip()}")
        self._fitting.add(job.resources)

    def _patiently(self, executor: Any, handle: SlurmJob) -> Any:
        from submitit.core.utils import FailedJobError

        job = handle.job
        threads = max(job.resources.cores // job.resources.processes, 1)
        for attempt in range(_TRIES):
            try:
                return executor.submit(_start, str(handle.job_file), threads)
            except FailedJobError as error:
                if not _PASSING.search(str(error)):
                    raise ValueError(f"slurm does not take job {job.name!r} ({job.resources}): {error}") from error
                said = error
            time.sleep(2**attempt)
        raise ConnectionError(f"slurm's controller does not answer: {said}") from said

    def resize(self, workers: int) -> None:
        """Change how many jobs are in Slurm's queue at once; those that are there go on."""
        self._workers = workers
        self.refresh()

    def close(self) -> None:
        """Cancel all jobs and wait until they have left.

        Raises:
            TimeoutError: some are still there after a minute.
        """
        jobs = [*self._waiting, *self._jobs]
        for handle in jobs:
            handle.cancel()
        self._queue.empty()
        self.refresh()
