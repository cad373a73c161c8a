from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from lightning_compress.launch import call
from lightning_compress.launch.ending import ended
from lightning_compress.launch.job import Outcome
from tests.launch.cases import job


@pytest.mark.parametrize(
    ("code", "starved", "expected"),
    [
        (9, False, Outcome("crash", "exit code 9")),
        (0, False, Outcome("crash", "exit code 0")),
        (-11, False, Outcome("crash", "killed by SIGSEGV")),
        (-11, True, Outcome("crash", "killed by SIGSEGV")),
        (-SIGTERM, False, Outcome("preempted", "asked to end by SIGTERM")),
        (-40, False, Outcome("crash", "killed by signal 40")),
        (-SIGKILL, False, Outcome("crash", "killed by SIGKILL (the kernel's out-of-memory killer does that)")),
        (-SIGKILL, True, Outcome("memory", "killed by the kernel's out-of-memory killer")),
    ],
)
def test_exit_codes(tmp_path: Path, code: int, starved: bool, expected: Outcome) -> None:
    assert ended(tmp_path, code, starved=starved) == expected


def test_no_room_for_the_outcome_is_disk(tmp_path: Path) -> None:
    assert ended(tmp_path, call.UNWRITTEN).cause == "disk"


def test_what_was_written_down_goes_first(tmp_path: Path) -> None:
    job_file = call.write(job(tmp_path, "add", first=1, second=2))
    assert ended(job_file.parent, -SIGKILL, stopped=("timeout", "stopped after 3 s")) == Outcome(
        "timeout", "stopped after 3 s"
    )
    call.run(job_file)
    assert ended(job_file.parent, -SIGKILL, stopped=("timeout", "stopped after 3 s")) == Outcome("done", value=3)
