import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_compress.launch import linux
from lightning_compress.launch.job import Outcome, Resources
from lightning_compress.launch.local import Local
from tests.launch.cases import alive, job, pids, until, wait

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys, time
from pathlib import Path
from lightning_compress.launch.job import Resources
from lightning_compress.launch.local import Local
from tests.launch.cases import job

Path(sys.argv[1], f"ran-{time.monotonic()}").touch()
launcher = Local(4, devices=[], preload=())
here = Path(sys.argv[1])
"""


@pytest.fixture
def launcher() -> Iterator[Local]:
    before = set(linux.children(os.getpid()))  # other tests' services
    made = Local(2, devices=[], preload=())
    yield made
    made.close()
    assert set(linux.children(os.getpid())) <= before


def _driver(folder: Path, code: str) -> subprocess.Popen[bytes]:
    """A script without an `if __name__` guard."""
    script = folder / "driver.py"
    script.write_text(DRIVER + code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)


def _family(folder: Path) -> list[int]:
    """All processes below a driver: the server, the jobs, what they started."""
    return [int(path.name) for path in folder.glob("*/pids/*")]


def _below(pid: int) -> list[int]:
    return [each for child in linux.children(pid) for each in (child, *_below(child))]


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
def test_nothing_outlives_a_killed_driver(tmp_path: Path, stop: bool, processes: int) -> None:
    driver = _driver(
        tmp_path,
        f"for name in 'ab':\n"
        f"    launcher.submit(job(here, 'family', name, wants=Resources(processes={processes}),"
        f" folder=str(here / name), stop={stop}))\n"
        "time.sleep(600)\n",
    )
    until(lambda: len(list(tmp_path.glob("*/complete"))) == 2)
    found = {*_family(tmp_path), *_below(driver.pid)}
    assert len(found) == 2 * 3 + 1
    driver.kill()
    driver.wait()
    until(lambda: not any(map(alive, found)), 2)


def test_nothing_outlives_a_driver_killed_while_jobs_stand_still(tmp_path: Path) -> None:
    driver = _driver(
        tmp_path,
        "launcher.submit(job(here, 'family', 'a', folder=str(here / 'a')))\n"
        "while not (here / 'a' / 'complete').exists(): time.sleep(0.01)\n"
        "launcher.submit(job(here, 'family', 'b', wants=Resources(exclusive=True), folder=str(here / 'b')))\n"
        "time.sleep(600)\n",
    )
    until((tmp_path / "b" / "complete").exists)
    found = {*_family(tmp_path), *_below(driver.pid)}
    assert len(found) == 2 * 3 + 1
    driver.kill()
    driver.wait()
    until(lambda: not any(map(alive, found)), 2)


def test_nothing_outlives_a_driver_killed_during_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    driver = _driver(
        tmp_path,
        "launcher = Local(1, devices=[], preload=['slow'])\n"
        "launcher.submit(job(here, 'add', first=1, second=2))\n"
        "time.sleep(600)\n",
    )
    until(lambda: _below(driver.pid))
    time.sleep(0.5)
    found = _below(driver.pid)
    driver.kill()
    driver.wait()
    until(lambda: not any(map(alive, found)), 2)


def test_a_driver_that_just_ends_leaves_nothing(tmp_path: Path) -> None:
    driver = _driver(
        tmp_path,
        "launcher.submit(job(here, 'family', 'a', folder=str(here / 'a')))\n"
        "while not (here / 'a' / 'complete').exists(): time.sleep(0.01)\n",
    )
    assert driver.wait(30) == 0
    assert len(_family(tmp_path)) == 3
    until(lambda: not any(map(alive, _family(tmp_path))), 2)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_drivers_script_is_not_run_again(tmp_path: Path, processes: int) -> None:
    driver = _driver(
        tmp_path,
        f"handle = launcher.submit(job(here, 'add', wants=Resources(processes={processes}), first=1, second=2))\n"
        "while handle.poll() is None: time.sleep(0.01)\n"
        "assert handle.poll().value == 3, handle.poll()\n"
        "launcher.close()\n",
    )
    assert driver.wait(30) == 0
    assert len(list(tmp_path.glob("ran-*"))) == 1


def test_a_killed_server_takes_its_jobs_along_and_the_next_job_gets_a_new_one(launcher: Local, tmp_path: Path) -> None:
    handle = launcher.submit(job(tmp_path, "family", folder=str(tmp_path)))
    until((tmp_path / "complete").exists)
    server = Path(f"/proc/{handle.id}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(server), signal.SIGKILL)
    (outcome,) = wait(handle)
    assert outcome == Outcome("crash", "the process that jobs are forked from was killed")
    first = Path(f"/proc/{handle.id}")
    until(lambda: not alive(int(first.name)), 2)
    assert wait(launcher.submit(job(tmp_path, "add", first=1, second=2))) == [Outcome("done", value=3)]
    for pid in pids(tmp_path):  # the one that had left the process group is out of reach
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_a_job_leaves_behind_is_killed_when_it_ends(launcher: Local, tmp_path: Path) -> None:
    other = launcher.submit(job(tmp_path, "leftovers", "first", folder=str(tmp_path)))
    assert wait(other)[0].cause == "done"
    assert len(pids(tmp_path)) == 1
    assert not any(map(alive, pids(tmp_path)))


def test_a_jobs_end_does_not_touch_what_another_one_started(launcher: Local, tmp_path: Path) -> None:
    handle = launcher.submit(job(tmp_path, "family", folder=str(tmp_path)))
    until((tmp_path / "complete").exists)
    wait(launcher.submit(job(tmp_path, "add", "other", first=1, second=2)))
    assert all(map(alive, pids(tmp_path)))
    assert handle.poll() is None


def test_a_job_holds_no_pipe_of_anybody_else(launcher: Local, tmp_path: Path) -> None:
    release = str(tmp_path / "release")
    launcher.submit(job(tmp_path, "mark", "other", start=str(tmp_path / "start"), release=release))
    until((tmp_path / "start").exists)
    (outcome,) = wait(launcher.submit(job(tmp_path, "files")))
    log = str(tmp_path / "job" / "log.txt")
    assert outcome.value == {"0": os.devnull, "1": log, "2": log}


@pytest.mark.parametrize("exclusive", [False, True])
def test_ranks_run_the_same_command_and_the_first_one_answers(launcher: Local, tmp_path: Path, exclusive: bool) -> None:
    wants = Resources(processes=2, cores=4, exclusive=exclusive)
    (tmp_path / "with spaces").mkdir()
    folder = tmp_path / "with spaces"
    assert wait(launcher.submit(job(folder, "rank_of_two", wants=wants, folder=str(folder)))) == [
        Outcome("done", value=0)
    ]
    first, second = ((folder / f"argv-{rank}").read_text().splitlines() for rank in (0, 1))
    assert second[1:] == first[2:] == ["-m", "lightning_compress.launch.call", str(folder / "job" / "job.json")]


@pytest.mark.slow
def test_lightning_trains_on_two_ranks(launcher: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    wants = Resources(processes=2, cores=2)
    handle = launcher.submit(job(tmp_path, "train_on_two_ranks", wants=wants, folder=str(tmp_path)))
    assert wait(handle, seconds=100) == [Outcome("done", value=2)]
    assert {path.name for path in tmp_path.glob("rank-*")} == {"rank-0", "rank-1"}


def test_memory_that_a_later_rank_lacks_is_the_cause(launcher: Local, tmp_path: Path) -> None:
    wants = Resources(processes=2)
    handle = launcher.submit(job(tmp_path, "rank_of_two", wants=wants, folder=str(tmp_path), fail=1))
    assert wait(handle) == [Outcome("memory", "MemoryError")]
    assert "connection closed by peer" in (tmp_path / "job" / "error.txt").read_text()


def test_a_full_disk_is_told(launcher: Local, tmp_path: Path) -> None:
    """First only the log is on a device that is always full, then the outcome too."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "log.txt").symlink_to("/dev/full")
    (outcome,) = wait(launcher.submit(job(tmp_path, "add", first=1, second=2)))
    assert outcome == Outcome("disk", "OSError: [Errno 28] No space left on device")
    (tmp_path / "job" / "outcome.json.part").symlink_to("/dev/full")
    (outcome,) = wait(launcher.submit(job(tmp_path, "add", first=1, second=2)))
    assert outcome.cause == "disk"
    assert "no space left to write how the job ended" in outcome.detail


def test_big_jobs_are_not_passed_over(tmp_path: Path) -> None:
    launcher = Local(None, devices=["0", "1"], preload=())
    release = str(tmp_path / "release")
    half, two = Resources(devices=0.5), Resources(devices=2)
    for name in ("a", "b"):
        launcher.submit(job(tmp_path, "mark", name, start=str(tmp_path / name), release=release, wants=half))
    big = launcher.submit(job(tmp_path, "environment", "big", wants=two))
    small = launcher.submit(job(tmp_path, "environment", "small", wants=half))
    assert (big.id, small.id) == ("", "")
    assert not launcher.has_room(half)
    Path(release).touch()
    outcomes = wait(big, small)
    assert outcomes[0].value["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert outcomes[1].value["CUDA_VISIBLE_DEVICES"] == "0"
    launcher.close()


def test_a_waiting_job_can_be_cancelled(launcher: Local, tmp_path: Path) -> None:
    handles = [launcher.submit(job(tmp_path, "nap", str(number), seconds=0.3)) for number in range(3)]
    handles[2].cancel()
    assert [outcome.cause for outcome in wait(*handles)] == ["done", "done", "cancelled"]
    assert not (tmp_path / "2" / "log.txt").exists()


def test_what_can_never_run_is_refused(launcher: Local, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 1 GPUs and there are 0"):
        launcher.submit(job(tmp_path, "add", wants=Resources(devices=1), first=1, second=2))
    with pytest.raises(ValueError, match="needs 1 GPUs and there are 0"):
        launcher.has_room(Resources(devices=1))


def test_a_name_runs_once_at_a_time(launcher: Local, tmp_path: Path) -> None:
    handle = launcher.submit(job(tmp_path, "nap", seconds=0.1))
    with pytest.raises(ValueError, match="'job' runs already"):
        launcher.submit(job(tmp_path, "add", first=1, second=2))
    wait(handle)


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RuntimeError, match="inline"):
        Local()


@pytest.mark.slow
def test_jobs_after_the_first_start_at_once_and_with_their_threads(tmp_path: Path) -> None:
    launcher = Local(1, devices=[], preload=["torch", "pytorch_lightning"])
    wait(launcher.submit(job(tmp_path, "add", first=1, second=2)), seconds=60)
    began = time.monotonic()
    (outcome,) = wait(launcher.submit(job(tmp_path, "nap", seconds=0)))
    assert outcome.value[0] - began < 0.3
    (outcome,) = wait(launcher.submit(job(tmp_path, "threads", wants=Resources(cores=2))))
    assert outcome.value == [2, 0]
    launcher.close()


@pytest.mark.gpu
def test_shares_of_a_gpu_see_it_alone(tmp_path: Path) -> None:
    launcher = Local(devices=["0"])
    half = Resources(devices=0.5)
    handles = [launcher.submit(job(tmp_path, "on_gpu", str(number), wants=half)) for number in range(2)]
    assert not launcher.has_room(half)
    assert [outcome.value for outcome in wait(*handles, seconds=120)] == [[1, 2.0, "0"]] * 2
    launcher.close()


@pytest.mark.gpu
def test_a_job_without_gpus_sees_none_and_the_server_has_not_touched_them(tmp_path: Path) -> None:
    launcher = Local()
    (outcome,) = wait(launcher.submit(job(tmp_path, "threads")), seconds=120)
    assert outcome.value == [1, 0]
    (outcome,) = wait(launcher.submit(job(tmp_path, "on_gpu")), seconds=120)
    assert outcome.cause == "error"
    (server,) = linux.children(os.getpid())
    assert "libcuda.so" not in Path(f"/proc/{server}/maps").read_text()
    launcher.close()
