"""What only a real Ray can show: worker processes that die, GPUs it hands out, and what a dead driver leaves."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_compress.launch import linux
from lightning_compress.launch.job import Job, Outcome, Resources
from lightning_compress.launch.ray import Ray
from tests.launch.cases import alive, until, wait

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
DRIVER = """
import sys, time
from pathlib import Path
from lightning_compress.launch.job import Job
from lightning_compress.launch.ray import Ray
folder = Path(sys.argv[1])
launcher = Ray(1, options={"num_cpus": 2})
launcher.submit(Job("nap", "tests.clusters.tasks:nap", {"seconds": 300, "file": str(folder / "pids")}, folder / "nap"))
time.sleep(300)
"""


@pytest.fixture(scope="module")
def launcher() -> Iterator[Ray]:
    """A Ray of our own that believes in two GPUs."""
    pytest.importorskip("ray")
    launcher = Ray(4, options={"num_cpus": 4, "num_gpus": 2})
    yield launcher
    launcher.close()


def _nap(folder: Path, seconds: float = 300, *, wants: Resources | None = None, name: str = "nap") -> Job:
    arguments = {"seconds": seconds, "file": str(folder / f"{name}.pids")}
    return Job(name, "tests.clusters.tasks:nap", arguments, folder / name, wants or Resources())


def _say(folder: Path, name: str, wants: Resources) -> Job:
    return Job(name, "tests.clusters.tasks:say", {"file": str(folder / "said")}, folder / name, wants)


def _pids(folder: Path) -> list[int]:
    until((folder / "nap.pids").exists, 60)
    return [int(pid) for pid in (folder / "nap.pids").read_text().split()]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _below(pid: int) -> list[int]:
    children = linux.children(pid)
    return [*children, *(each for child in children for each in _below(child))]


def test_a_killed_job_is_a_crash(launcher: Ray, tmp_path: Path) -> None:
    handle = launcher.submit(_nap(tmp_path))
    job, child = _pids(tmp_path)
    os.kill(job, signal.SIGKILL)
    (outcome,) = wait(handle, seconds=30)
    assert (outcome.cause, "SIGKILL" in outcome.detail) == ("crash", True)
    until(lambda: not alive(child), 10)


def test_a_killed_worker_of_ray_is_a_crash_and_takes_the_job_along(launcher: Ray, tmp_path: Path) -> None:
    handle = launcher.submit(_nap(tmp_path))
    pids = _pids(tmp_path)
    # Above the job is the process that it was forked from, and above that one Ray's.
    os.kill(_parent(_parent(pids[0])), signal.SIGKILL)
    (outcome,) = wait(handle, seconds=30)
    assert outcome.cause == "crash"
    until(lambda: not any(map(alive, pids)), 10)


def test_gpus_are_shared_and_counted(launcher: Ray, tmp_path: Path) -> None:
    half = [launcher.submit(_say(tmp_path, f"half{number}", Resources(devices=0.5))) for number in range(4)]
    whole = launcher.submit(_say(tmp_path, "whole", Resources(devices=2)))
    none = launcher.submit(_say(tmp_path, "none", Resources()))
    seen = [outcome.value["CUDA_VISIBLE_DEVICES"] for outcome in wait(*half, whole, none, seconds=60)]
    assert set(seen[:4]) <= {"0", "1"}
    assert seen[4:] == ["0,1", ""]


def test_nothing_starts_beside_an_exclusive_job(launcher: Ray, tmp_path: Path) -> None:
    first = launcher.submit(_nap(tmp_path, 1.0, name="first"))
    alone = launcher.submit(_nap(tmp_path, 1.0, name="alone", wants=Resources(exclusive=True)))
    last = launcher.submit(_nap(tmp_path, 0.1, name="last"))
    assert not launcher.has_room(Resources())
    times = [[float(word) for word in outcome.value.split()] for outcome in wait(first, alone, last, seconds=60)]
    assert times[0][1] <= times[1][0]
    assert times[1][1] <= times[2][0]


@pytest.mark.parametrize("wants", [Resources(cores=40), Resources(devices=3), Resources(devices=1.5)])
def test_what_can_never_run_is_refused(launcher: Ray, tmp_path: Path, wants: Resources) -> None:
    with pytest.raises(ValueError, match=r"the job needs|a share of one GPU"):
        launcher.submit(_say(tmp_path, "big", wants))


def test_two_ranks_in_one_job_train_together(launcher: Ray, tmp_path: Path) -> None:
    wants = Resources(cores=2, processes=2)
    handle = launcher.submit(
        Job("ddp", "tests.clusters.tasks:ranks", {"folder": str(tmp_path)}, tmp_path / "ddp", wants)
    )
    assert wait(handle, seconds=200) == [Outcome("done", value=[1.5, 2.0, 1.5, 2.0])]


@pytest.fixture
def short() -> Iterator[str]:
    """A folder whose name leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield folder


def test_a_dead_driver_leaves_no_process(tmp_path: Path, short: str) -> None:
    environment = {**os.environ, "TMPDIR": short}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=ROOT, env=environment)
    until((tmp_path / "pids").exists, 90)
    below = _below(driver.pid)
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in below]
    assert {"raylet", "gcs_server"} <= set(names)
    driver.kill()
    driver.wait()
    end = time.monotonic() + 10
    while (left := [name for pid, name in zip(below, names, strict=True) if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def test_close_leaves_no_process(tmp_path: Path) -> None:
    code = DRIVER.replace(
        "time.sleep(300)", "time.sleep(3); launcher.close(); print('closed', flush=True); sys.stdin.read()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"closed\n"
    assert not [pid for pid in _below(driver.pid) if alive(pid)]
    driver.communicate()
    assert driver.returncode == 0
