"""What only a real Slurm can show: how it kills, preempts and forgets, and what a dead driver leaves."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_compress.launch.job import Job, Launcher, Outcome, Resources
from lightning_compress.launch.slurm import Slurm
from tests.launch.cases import alive, until, wait

DRIVER = """
import sys, time
from pathlib import Path
from lightning_compress.launch.job import Job
from lightning_compress.launch.slurm import Slurm
folder = Path(sys.argv[1])
launcher = Slurm(1, folder)
launcher.submit(Job("nap", "tests.clusters.tasks:nap", {"seconds": 300, "file": str(folder / "pids")}, folder / "nap"))
time.sleep(300)
"""


def _nap(folder: Path, seconds: float = 300, *, wants: Resources | None = None, name: str = "nap") -> Job:
    arguments = {"seconds": seconds, "file": str(folder / f"{name}.pids")}
    return Job(name, "tests.clusters.tasks:nap", arguments, folder / name, wants or Resources())


def _pids(folder: Path, name: str = "nap") -> list[int]:
    file = folder / f"{name}.pids"
    until(file.exists, 60)
    return [int(pid) for pid in file.read_text().split()]


def _queued(folder: Path) -> list[str]:
    listed = subprocess.run(["squeue", "--noheader", "--format=%A %j"], check=True, capture_output=True, text=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.split()[1].startswith(folder.name)]


@pytest.fixture
def make(slurm: Path, tmp_path: Path) -> Callable[..., Slurm]:
    return lambda workers=2, **options: Slurm(workers, tmp_path, options)


@pytest.mark.cluster
def test_a_job_killed_on_its_node_is_a_crash(make: Callable[..., Slurm], tmp_path: Path) -> None:
    launcher = make()
    handle = launcher.submit(_nap(tmp_path))
    job, child = _pids(tmp_path)
    os.kill(job, signal.SIGKILL)
    (outcome,) = wait(handle, seconds=40)
    assert outcome.cause == "crash"
    assert "SIGKILL" in outcome.detail
    until(lambda: not alive(child), 10)
    launcher.close()


@pytest.mark.cluster
def test_a_job_that_somebody_else_cancels_says_so(make: Callable[..., Slurm], tmp_path: Path) -> None:
    launcher = make()
    handle = launcher.submit(_nap(tmp_path))
    _pids(tmp_path)
    subprocess.run(["scancel", handle.id], check=True)
    assert wait(handle, seconds=40) == [Outcome("cancelled", "somebody else cancelled the job in the cluster")]
    launcher.close()


@pytest.mark.cluster
def test_a_job_above_its_memory_limit_says_memory(make: Callable[..., Slurm], slurm: Path, tmp_path: Path) -> None:
    if (slurm / "limits").read_text().strip() == "no":
        pytest.skip("this machine lets nobody make control groups, so no memory limit holds")
    launcher = make(mem="200MB")
    handle = launcher.submit(Job("hog", "tests.clusters.tasks:hog", {"megabytes": 600}, tmp_path / "hog"))
    (outcome,) = wait(handle, seconds=60)
    assert outcome.cause == "memory"
    assert "mem" in outcome.detail
    launcher.close()


@pytest.mark.cluster
def test_slurms_own_time_limit_says_timeout(make: Callable[..., Slurm], tmp_path: Path) -> None:
    launcher = make(time=1)
    handle = launcher.submit(_nap(tmp_path))
    assert wait(handle, seconds=180) == [Outcome("timeout", "the job reached its time limit")]
    assert not any(map(alive, _pids(tmp_path)))
    launcher.close()


@pytest.mark.cluster
def test_a_preempted_job_ends_and_is_not_requeued(make: Callable[..., Slurm], tmp_path: Path) -> None:
    launcher = make(partition="low", exclusive=True)
    handle = launcher.submit(_nap(tmp_path))
    pids = _pids(tmp_path)
    subprocess.run(["sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"], check=True)
    assert wait(handle, seconds=60) == [Outcome("preempted", "the job gave way to another one")]
    assert not any(map(alive, pids))
    assert handle.id not in _queued(tmp_path)
    again = launcher.submit(Job("say", "tests.clusters.tasks:say", {"file": str(tmp_path / "said")}, tmp_path / "say"))
    assert wait(again, seconds=60)[0].cause == "done"
    launcher.close()


@pytest.mark.cluster
def test_a_new_driver_clears_what_a_dead_one_left(make: Callable[..., Slurm], tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=root)
    until((tmp_path / "pids").exists, 60)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    driver.kill()
    driver.wait()
    other = Slurm(1, tmp_path.with_name("another sweep"))
    assert all(map(alive, pids))
    launcher: Launcher = make(1)
    assert not any(map(alive, pids))
    assert launcher.has_room(Resources())
    launcher.close()
    other.close()


@pytest.mark.cluster
def test_two_ranks_in_one_job_train_together(make: Callable[..., Slurm], tmp_path: Path) -> None:
    launcher = make()
    wants = Resources(cores=2, processes=2)
    handle = launcher.submit(
        Job("ddp", "tests.clusters.tasks:ranks", {"folder": str(tmp_path)}, tmp_path / "ddp", wants)
    )
    # The mean of the gradients 1 and 2, and the number of ranks, as both saw them.
    assert wait(handle, seconds=200) == [Outcome("done", value=[1.5, 2.0, 1.5, 2.0])]
    launcher.close()


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("options", "wants", "message"),
    [
        ({"partition": "no_such"}, Resources(), "invalid partition"),
        ({}, Resources(cores=40), "not available"),
        ({}, Resources(devices=1), "generic resource"),
        ({"partitoin": "low"}, Resources(), "did you mean 'partition'"),
        ({"comment": "mine"}, Resources(), "set by the launcher"),
    ],
)
def test_what_can_never_run_is_refused(
    make: Callable[..., Slurm], tmp_path: Path, options: dict[str, str], wants: Resources, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options).submit(_nap(tmp_path, wants=wants))
    until(lambda: not _queued(tmp_path), 20)


def test_without_slurm_the_message_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match=r"sbatch is not on this machine"):
        Slurm(1, tmp_path)
