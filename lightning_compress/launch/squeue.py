"""What Slurm's controller says of the jobs of one name: asked for all of them at once, and without waiting for it."""

import math
import os
import subprocess
import tempfile
import time
from typing import final

from lightning_compress.launch.job import Cause

#: The state of a job that the controller no longer lists.
FORGOTTEN = "FORGOTTEN"

#: Of a job that has not ended.
LIVE = {
    *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING"),
    *("STOPPED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
}
#: How a job ended that wrote nothing down; any other state is a crash.
ENDS: dict[str, tuple[Cause, str]] = {
    "OUT_OF_MEMORY": ("memory", "Slurm killed the job at its memory limit; give it more with the option mem"),
    "TIMEOUT": ("timeout", "the job reached its time limit"),
    "DEADLINE": ("timeout", "the job reached its deadline"),
    "PREEMPTED": ("preempted", "the job gave way to another one"),
    "REVOKED": ("preempted", "the job was revoked: a sibling cluster runs it"),
    "NODE_FAIL": ("preempted", "the job's node failed"),
    "BOOT_FAIL": ("preempted", "the job's node did not boot"),
    "CANCELLED": ("cancelled", "somebody else cancelled the job in the cluster"),
    FORGOTTEN: ("crash", "the job left the queue and no outcome"),
}

_EVERY = 1.0  # seconds between two questions
_LEAVE = 60.0  # seconds in which cancelled jobs leave the queue: Slurm's KillWait is 30 by default


@final
class Queue:
    """The jobs of one name and user, as the controller last told."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asked = -math.inf
        self._process: subprocess.Popen[bytes] | None = None
        self._states: dict[str, tuple[str, int]] = {}
        self._as_of = -math.inf

    def state(self, number: str, *, since: float) -> tuple[str, int] | None:
        """State and exit code of a job submitted at `since`, or None while nothing newer than that is known."""
        self._refresh()
        return None if self._as_of < since else self._states.get(number, (FORGOTTEN, 0))

    def _refresh(self) -> None:
        # The controller can take long to answer, so its answer is picked up by a later call.
        if self._process is None and time.monotonic() - self._asked >= _EVERY:
            self._asked, self._answer = time.monotonic(), tempfile.TemporaryFile()  # noqa: SIM115 - read by a later call
            self._process = subprocess.Popen(
                self._command("--states=all"), stdout=self._answer, stderr=subprocess.DEVNULL
            )
        if self._process is None or self._process.poll() is None:
            return
        if self._process.returncode == 0:
            self._answer.seek(0)
            rows = (line.split() for line in self._answer.read().decode().splitlines())
            self._states = {number: (state, os.waitstatus_to_exitcode(int(raw))) for number, state, raw in rows}
            self._as_of = self._asked
        self._process = None
        self._answer.close()

    def _command(self, *options: str) -> list[str]:
        columns = "JobID:24 ,State:24 ,exit_code:12 "
        mine = (f"--user={os.getuid()}", f"--name={self._name}")
        return ["squeue", "--noheader", *mine, f"--Format={columns}", *options]

    def empty(self) -> None:
        """Cancel every job of this name, and return when they have left.

        Raises:
            TimeoutError: some are still there after a minute.
        """
        until = time.monotonic() + _LEAVE
        while True:
            listed = subprocess.run(self._command(), capture_output=True, text=True)
            if listed.returncode == 0 and not listed.stdout.strip():
                break
            if time.monotonic() > until:
                left = listed.stdout.replace("\n", " ") or listed.stderr
                raise TimeoutError(f"cancelled jobs are still in the queue after {_LEAVE:.0f} s: {left.strip()}")
            subprocess.run(["scancel", f"--user={os.getuid()}", f"--name={self._name}"], capture_output=True)
            time.sleep(0.2)
        if self._process is not None:
            self._process.wait()
            self._refresh()
        self._states, self._as_of = {}, time.monotonic()
        self._asked = self._as_of
