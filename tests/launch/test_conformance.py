"""What every launcher does; a launcher is a row of `cases.LAUNCHERS`."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.launch.job import Job, Launcher, Outcome, Resources
from tests.launch.cases import Case, alive, job, pids, until, wait

Make = Callable[[int], Launcher]


def test_a_done_job_says_what_its_function_returned(make: Make, case: Case, tmp_path: Path) -> None:
    handle = make(1).submit(job(tmp_path, "add", first=1.5, second=2))
    assert wait(handle, seconds=case.seconds) == [Outcome("done", value=3.5)]
    assert "adding" in (tmp_path / "job" / "log.txt").read_text()
    assert not (tmp_path / "job" / "error.txt").exists()
    assert handle.id
    handle.cancel()
    assert handle.poll() == Outcome("done", value=3.5)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("complain", {"text": "lr is -1\nand more"}, Outcome("error", "ValueError: lr is -1 and more")),
        ("unwritable", {}, Outcome("error", "TypeError: Object of type set is not JSON serializable")),
        ("add", {"first": 1}, Outcome("error", "TypeError: add() missing 1 required positional argument: 'second'")),
        ("fill_memory", {}, Outcome("memory", "MemoryError")),
        ("fill_disk", {}, Outcome("disk", "RuntimeError: cannot save the checkpoint")),
    ],
)
def test_a_failed_job_says_why(
    make: Make, case: Case, tmp_path: Path, function: str, arguments: dict[str, Any], expected: Outcome
) -> None:
    handle = make(1).submit(job(tmp_path, function, **arguments))
    assert wait(handle, seconds=case.seconds) == [expected]
    trace = (tmp_path / "job" / "error.txt").read_text()
    assert trace.startswith("Traceback")
    assert expected.detail in " ".join(trace.split())


@pytest.mark.parametrize("target", ["no_such_module:f", "tests.launch.jobs:no_such_function"])
def test_a_target_that_is_not_there_is_an_error(make: Make, case: Case, tmp_path: Path, target: str) -> None:
    (outcome,) = wait(make(1).submit(Job("job", target, {}, tmp_path)), seconds=case.seconds)
    assert outcome.cause == "error"
    assert "no_such" in outcome.detail


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [("math.fsum", {}, "package.module:function"), ("math:fsum", {"seq": Path()}, "plain JSON data")],
)
def test_what_cannot_be_a_job_is_refused(
    make: Make, tmp_path: Path, target: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(1).submit(Job("job", target, arguments, tmp_path))


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("leave", {"code": 9}, "exit code 9"),
        ("die", {"number": int(signal.SIGKILL)}, "SIGKILL"),
        ("die", {"number": int(signal.SIGSEGV)}, "SIGSEGV"),
    ],
)
def test_a_process_that_dies_is_a_crash(
    make: Make, case: Case, tmp_path: Path, function: str, arguments: dict[str, Any], words: str
) -> None:
    case.needs("process")
    (outcome,) = wait(make(1).submit(job(tmp_path, function, **arguments)), seconds=case.seconds)
    assert outcome.cause == "crash"
    assert words in outcome.detail


def test_a_training_that_is_asked_to_end_is_preempted(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("process")
    (outcome,) = wait(make(1).submit(job(tmp_path, "train_until_stopped")), seconds=60 + case.seconds)
    assert outcome == Outcome("preempted", "asked to end by SIGTERM")


def test_a_job_out_of_time_is_stopped_with_all_it_started(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("process", "timeout")
    wants = Resources(timeout=1.0)
    (outcome,) = wait(make(1).submit(job(tmp_path, "family", folder=str(tmp_path), wants=wants)), seconds=case.seconds)
    assert outcome.cause == "timeout"
    assert "1 s" in outcome.detail
    until(lambda: not any(map(alive, pids(tmp_path))))


def test_cancel_stops_a_job_and_all_it_started(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("process")
    handle = make(1).submit(job(tmp_path, "family", folder=str(tmp_path)))
    until(lambda: (tmp_path / "complete").exists() or handle.poll(), case.seconds)
    assert len(pids(tmp_path)) == 3
    handle.cancel()
    until(lambda: handle.poll() is not None)
    assert [handle.poll()] == [Outcome("cancelled", "stopped on request")]
    until(lambda: not any(map(alive, pids(tmp_path))))
    handle.cancel()


def test_jobs_run_side_by_side_up_to_the_number_of_workers(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("beside")
    launcher = make(2)
    starts = [tmp_path / f"start{number}" for number in range(3)]
    release = tmp_path / "release"
    handles = []
    for number, start in enumerate(starts):
        assert launcher.has_room(Resources()) == (number < 2)
        handles.append(launcher.submit(job(tmp_path, "mark", str(number), start=str(start), release=str(release))))
    until(lambda: handles[0].poll() or (starts[0].exists() and starts[1].exists()), case.seconds)
    time.sleep(0.2)
    assert not starts[2].exists()
    release.touch()
    first, second, third = (outcome.value for outcome in wait(*handles, seconds=case.seconds))
    assert max(first[0], second[0]) < min(first[1], second[1])
    assert third[0] >= min(first[1], second[1])
    assert launcher.has_room(Resources())


def test_more_workers_start_what_waits_and_fewer_let_what_runs_end(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("beside")
    launcher = make(1)
    release = str(tmp_path / "release")
    starts = [tmp_path / f"start{number}" for number in range(3)]
    handles = [
        launcher.submit(job(tmp_path, "mark", start.name, start=str(start), release=release)) for start in starts
    ]
    launcher.resize(2)
    until(lambda: handles[0].poll() or (starts[0].exists() and starts[1].exists()), case.seconds)
    launcher.resize(1)
    assert not launcher.has_room(Resources())
    Path(release).touch()
    outcomes = wait(*handles, seconds=case.seconds)
    assert [outcome.cause for outcome in outcomes] == ["done"] * 3
    assert outcomes[2].value[0] >= max(outcome.value[1] for outcome in outcomes[:2])


def test_an_exclusive_job_never_runs_beside_another(make: Make, case: Case, tmp_path: Path) -> None:
    launcher = make(2)
    alone = Resources(exclusive=True)
    handles = [launcher.submit(job(tmp_path, "beat", f"b{number}", seconds=0.4)) for number in range(2)]
    timings = [launcher.submit(job(tmp_path, "nap", f"t{number}", wants=alone, seconds=0.2)) for number in range(2)]
    handles.append(launcher.submit(job(tmp_path, "beat", "late", seconds=0.1)))
    naps = [outcome.value for outcome in wait(*timings, seconds=case.seconds)]
    beats = [outcome.value for outcome in wait(*handles, seconds=case.seconds)]
    assert naps[0][1] <= naps[1][0] or naps[1][1] <= naps[0][0]
    for began, ended in naps:
        # A sleep of theirs that ends just after the stop is the only beat that may fall there.
        assert not [beat for times in beats for beat in times if began < beat < ended]


def test_an_exclusive_job_waits_for_nobody(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("freeze")
    launcher = make(1)
    start, release = tmp_path / "start", tmp_path / "release"
    handle = launcher.submit(job(tmp_path, "mark", start=str(start), release=str(release)))
    until(start.exists, case.seconds)
    alone = Resources(exclusive=True)
    assert launcher.has_room(alone)
    timing = launcher.submit(job(tmp_path, "nap", "timing", wants=alone, seconds=0.1))
    assert not launcher.has_room(alone)
    (outcome,) = wait(timing, seconds=case.seconds)
    assert outcome.cause == "done"
    assert handle.poll() is None
    release.touch()
    assert wait(handle, seconds=case.seconds)[0].cause == "done"


def test_standing_still_is_no_time_that_a_job_takes(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("freeze", "timeout")
    launcher = make(1)
    start, release = tmp_path / "start", tmp_path / "release"
    wants = Resources(timeout=1.5)
    handle = launcher.submit(job(tmp_path, "mark", start=str(start), release=str(release), wants=wants))
    until(start.exists, case.seconds)
    timing = job(tmp_path, "nap", "timing", wants=Resources(exclusive=True), seconds=2.0)
    assert wait(launcher.submit(timing), seconds=case.seconds)[0].cause == "done"
    release.touch()
    assert wait(handle, seconds=case.seconds)[0].cause == "done"


def test_a_job_that_stands_still_can_be_cancelled(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("freeze")
    launcher = make(1)
    handle = launcher.submit(job(tmp_path, "family", folder=str(tmp_path)))
    until((tmp_path / "complete").exists, case.seconds)
    timing = launcher.submit(job(tmp_path, "nap", "timing", wants=Resources(exclusive=True), seconds=30))
    handle.cancel()
    assert handle.poll() == Outcome("cancelled", "stopped on request")
    until(lambda: not any(map(alive, pids(tmp_path))))
    assert timing.poll() is None


def test_a_job_has_its_own_environment(make: Make, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.needs("process")
    monkeypatch.setenv("LOCAL_RANK", "3")
    (outcome,) = wait(make(1).submit(job(tmp_path, "environment", wants=Resources(cores=2))), seconds=case.seconds)
    assert outcome.value["OMP_NUM_THREADS"] == "2"
    assert not outcome.value["CUDA_VISIBLE_DEVICES"]
    assert outcome.value["LOCAL_RANK"] is None


def test_close_leaves_no_process(make: Make, case: Case, tmp_path: Path) -> None:
    case.needs("process")
    launcher = make(1)
    handle = launcher.submit(job(tmp_path, "family", folder=str(tmp_path)))
    waiting = launcher.submit(job(tmp_path, "add", "second", first=1, second=2))
    until(lambda: (tmp_path / "complete").exists() or handle.poll(), case.seconds)
    launcher.close()
    until(lambda: not any(map(alive, pids(tmp_path))))  # on a busy machine the last ones take a moment to die
    assert [each.cause for each in wait(handle, waiting)] == ["cancelled", "cancelled"]
    launcher.close()


def test_a_folder_may_have_spaces_and_be_relative(
    make: Make, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handle = make(1).submit(job(Path("with some spaces, ä"), "add", first=1, second=2))
    assert wait(handle, seconds=case.seconds) == [Outcome("done", value=3)]
    assert (tmp_path / "with some spaces, ä" / "job" / "outcome.json").exists()


def test_a_second_attempt_does_not_see_how_the_first_ended(make: Make, case: Case, tmp_path: Path) -> None:
    launcher = make(1)
    wait(launcher.submit(job(tmp_path, "complain", text="first")), seconds=case.seconds)
    assert (tmp_path / "job" / "error.txt").exists()
    handle = launcher.submit(job(tmp_path, "nap", seconds=0.2))
    assert handle.poll() != Outcome("error", "ValueError: first")
    assert wait(handle, seconds=case.seconds)[0].cause == "done"
    assert not (tmp_path / "job" / "error.txt").exists()
