"""How a job ended, from what its worker wrote down and how the process died."""

import signal
from pathlib import Path

from lightning_compress.launch import call
from lightning_compress.launch.job import Cause, Outcome


def ended(folder: Path, code: int, *, stopped: tuple[Cause, str] | None = None, starved: bool = False) -> Outcome:
    """What the worker wrote down, or else why the launcher `stopped` it, or else what its exit `code` says.

    `code` is minus the number of the signal that killed it; `starved`: the kernel killed one for memory meanwhile.

    >>> ended(Path("nowhere"), 9)
    Outcome(cause='crash', detail='exit code 9', value=None)
    """
    written = call.read(folder)
    if written is not None:
        return written
    if stopped is not None:
        return Outcome(*stopped)
    if code == call.UNWRITTEN:
        return Outcome("disk", f"no space left to write how the job ended, in {folder}")
    if code == -signal.SIGKILL:
        return Outcome("memory" if starved else "crash", _KILLED_FOR_MEMORY if starved else _KILLED)
    if code == -signal.SIGTERM:
        return Outcome("preempted", "asked to end by SIGTERM")
    if code < 0:
        return Outcome("crash", f"killed by {_name(-code)}")
    return Outcome("crash", f"exit code {code}")


_KILLED = "killed by SIGKILL (the kernel's out-of-memory killer does that)"
_KILLED_FOR_MEMORY = "killed by the kernel's out-of-memory killer"


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
