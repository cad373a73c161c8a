"""Jobs on a Ray cluster or a Ray of our own: the only file that imports Ray.

Ray finds the node and the GPUs; there a job is run by the launcher for local processes, which keeps the time, cleans up
after it and takes it along when Ray's worker process dies.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, final

from lightning_compress.launch import call, linux
from lightning_compress.launch.job import Cause, Job, Outcome, Resources
from lightning_compress.launch.local import Local

_POLITE = 5.0  # seconds for a job's end before its worker process is killed
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_process_group_cleanup_enabled": "true",
}
_OURS = {
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    # The smallest one that Ray takes: what jobs say goes through files.
    "object_store_memory": 80 * 2**20,
}
# Ray's agents wait a minute for a dead cluster: kills the processes named on its first line when its input ends.
_WATCH = """
import os, signal, sys
files = [os.pidfd_open(int(pid)) for pid in sys.stdin.readline().split()]
sys.stdin.read()
for file in files:
    try:
        signal.pidfd_send_signal(file, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def _work(job: Job, cwd: str, path: list[str], environment: dict[str, str]) -> Outcome:
    """In Ray's worker process: run the job as the only one of a local launcher, on the GPUs that Ray chose."""
    os.chdir(cwd)
    sys.path[:] = path
    os.environ.update(environment)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if job.resources.devices else ""
    launcher = Local(workers=1, devices=[device for device in visible.split(",") if device], preload=())
    try:
        handle = launcher.submit(job)
        while (outcome := handle.poll()) is None:
            time.sleep(0.1)
        return outcome
    finally:
        # Also when Ray cancels the task, by an exception.
        launcher.close()


@final
class RayJob:
    """A job that waits in the launcher, or in Ray, runs or has ended; `id` is its name."""

    def __init__(self, launcher: "Ray", job: Job) -> None:
        self.id = job.name
        self.job = job
        self.task: Any = None
        self.outcome: Outcome | None = None
        self.cancelled: float | None = None
        self._launcher = launcher

    def poll(self) -> Outcome | None:
        """How the job ended, or None while it waits or runs."""
        if self.outcome is None:
            self._launcher.refresh()
        return self.outcome

    def cancel(self) -> None:
        """Stop the job and all that it started; nothing happens to an ended one."""
        if self.poll() is None and self.cancelled is None:
            self._launcher.cancel(self)


@final
class Ray:
    """Jobs as tasks of Ray, `workers` of them at once; without `address` on a Ray of this machine that ends with us.

    An exclusive job starts when nothing else of this launcher runs, and nothing else starts beside it. Shares of a GPU
    are what Ray counts; nothing keeps a job within its share. A cluster's nodes need this package and the file system;
    one that was started by `ray start` asks for a token, which needs RAY_AUTH_MODE=token in the environment.

    Args:
        workers: jobs that run at once; by default as many as there are cores and GPUs for.
        address: of a cluster to join, or `auto` for the one that this machine is part of.
        options: more arguments of `ray.init`: num_cpus, num_gpus, ... for a Ray of our own.

    Raises:
        ConnectionError: no cluster answers at the address.
        ImportError: Ray is not installed.
        RuntimeError: this is not Linux, or this process is connected to a Ray already.
    """

    def __init__(
        self, workers: int | None = None, address: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        linux.require()
        self._workers = workers
        self._waiting: list[RayJob] = []
        self._running: list[RayJob] = []
        self._folder = tempfile.mkdtemp(prefix="ray-") if address is None else None
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._ray = _ray()
        before = set(linux.children(os.getpid()))
        term = signal.getsignal(signal.SIGTERM)
        own = (
            _OURS | {"address": "local", "_temp_dir": self._folder}
            if address is None
            else {"address": address, "log_to_driver": False}
        )
        self._ray.init(**(own | dict(options or {})))
        # Ray puts its own there.
        signal.signal(signal.SIGTERM, term)
        self._watch = _watch(set(linux.children(os.getpid())) - before) if address is None else None
        self._task = self._ray.remote(max_retries=0)(_work)

    @property
    def patience(self) -> float:
        """Ten seconds: the driver polls all the time."""
        return 10.0

    @property
    def workers(self) -> int:
        """Jobs that run at once, at most."""
        return self._workers or int(_ray().cluster_resources().get("CPU", 1))

    def has_room(self, resources: Resources) -> bool:
        """Whether a job submitted now would start at once, as far as this launcher's own jobs go."""
        self.refresh()
        return not self._waiting and self._fits(resources)

    def submit(self, job: Job) -> RayJob:
        """Hand the job to Ray, or queue it where there is no room; a queued one starts when any job is polled.

        Raises:
            ValueError: no node has what the job needs, or it is not plain JSON data.
        """
        self._check(job.resources)
        job = replace(job, folder=call.write(job).parent)
        handle = RayJob(self, job)
        self._waiting.append(handle)
        self.refresh()
        return handle

    def _check(self, needs: Resources) -> None:
        if needs.devices > 1 and needs.devices != int(needs.devices):
            raise ValueError(f"a job takes a share of one GPU or whole ones: 0.5, 1, 2, ..., not {needs.devices:g}")
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= needs.cores and node.get("GPU", 0) >= needs.devices for node in nodes):
            there = "; ".join(f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise ValueError(
                f"the job needs {needs.cores} cores and {needs.devices:g} GPUs; the nodes of Ray have {there}"
            )

    def _fits(self, needs: Resources) -> bool:
        others = [handle.job.resources for handle in self._running]
        if (self._workers is not None and len(others) >= self._workers) or any(other.exclusive for other in others):
            return False
        if needs.exclusive:
            return not others
        total = self._ray.cluster_resources()
        cores = sum(other.cores for other in others) + needs.cores
        devices = sum(other.devices for other in others) + needs.devices
        # Thirds add up to a little more than one.
        return bool(cores <= total.get("CPU", 0) and devices <= total.get("GPU", 0) + 1e-9)

    def refresh(self) -> None:
        """See what has ended, and start what waits for that."""
        for handle in self._running:
            self._see(handle)
        self._running = [handle for handle in self._running if handle.outcome is None]
        # In turn, so that neither a big nor an exclusive one is passed over.
        while self._waiting and self._fits(self._waiting[0].job.resources):
            handle = self._waiting.pop(0)
            handle.task = self._start(handle.job)
            self._running.append(handle)

    def _start(self, job: Job) -> Any:
        tracking = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
        place = self._task.options(name=job.name, num_cpus=job.resources.cores, num_gpus=job.resources.devices)
        path = [os.path.abspath(each) for each in sys.path]
        return place.remote(job, os.getcwd(), path, tracking)

    def _see(self, handle: RayJob) -> None:
        ended, _ = self._ray.wait([handle.task], timeout=0)
        if ended:
            handle.outcome = self._outcome(handle)
        elif handle.cancelled is not None and time.monotonic() - handle.cancelled > _POLITE:
            self._ray.cancel(handle.task, force=True)

    def _outcome(self, handle: RayJob) -> Outcome:
        errors = self._ray.exceptions
        ends: tuple[tuple[type[Exception], Cause], ...] = (
            (errors.TaskCancelledError, "cancelled"),
            (errors.OutOfMemoryError, "memory"),
            (errors.NodeDiedError, "preempted"),
            (errors.RayTaskError, "error"),
            (errors.RayError, "crash"),
        )
        try:
            outcome = self._ray.get(handle.task)
            assert isinstance(outcome, Outcome)
            return outcome
        except errors.RayError as error:
            cause = next(cause for kind, cause in ends if isinstance(error, kind))
            if handle.cancelled is not None:
                return Outcome("cancelled", "stopped on request")
            return call.read(handle.job.folder) or Outcome(cause, call.one_line(error))

    def cancel(self, handle: RayJob) -> None:
        """Stop a job of this launcher, or take it out of the queue."""
        handle.cancelled = time.monotonic()
        if handle in self._waiting:
            self._waiting.remove(handle)
            handle.outcome = Outcome("cancelled", "stopped on request")
        else:
            self._ray.cancel(handle.task, force=False)

    def resize(self, workers: int) -> None:
        """Change the number of jobs that run at once; those that run go on."""
        self._workers = workers
        self.refresh()

    def close(self) -> None:
        """Stop all jobs and leave the cluster, or end our own Ray with all its processes."""
        for handle in (*self._waiting, *self._running):
            handle.cancel()
        # Forced after five seconds, which is fast.
        until = time.monotonic() + 2 * _POLITE
        while self._running and time.monotonic() < until:
            self.refresh()
            time.sleep(0.05)
        self._running = []
        self._ray.shutdown()
        if self._watch is not None:
            self._watch.communicate()
            self._watch = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError(f"the ray launcher needs Ray: pip install ray ({error})") from error
    module: ModuleType = ray
    return module


def _watch(started: set[int]) -> "subprocess.Popen[bytes]":
    """A process that kills Ray's daemons and their children, given theirs, when this one has gone or lets it."""
    daemons = [*started, *(child for pid in started for child in linux.children(pid))]
    watch = subprocess.Popen([sys.executable, "-S", "-c", _WATCH], stdin=subprocess.PIPE, start_new_session=True)
    assert watch.stdin is not None
    watch.stdin.write((" ".join(map(str, daemons)) + "\n").encode())
    watch.stdin.flush()
    return watch
