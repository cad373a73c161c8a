import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest

from lightning_compress.run.result import Result
from lightning_compress.sweep import check, record
from lightning_compress.sweep.spec import StudySpec
from tests.sweep import toy
from tests.sweep.conftest import MakeBench
from tests.sweep.toy import Bench, run_study


def _kinds(bench: Bench) -> Counter[str]:
    return Counter(name.partition("-")[0] for name in bench.names)


def test_every_step_of_a_study(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    found, lines = run_study(spec, bench, tmp_path / "study")
    points = len(found.front)
    assert _kinds(bench) == {"teacher": 1, "baseline": 2, "trial": 8, "confirm": 2 * (points + 2)}
    assert bench.names[:3] == ["baseline-1", "baseline-0", "teacher-0"], "later runs are timed beside the reference"
    assert Counter(bench.timed) == Counter(name for name in bench.names if not name.startswith("confirm"))
    assert sorted(bench.tested) == sorted([point.run for point in (*found.front, *found.baselines)])
    assert [point.name for point in found.baselines] == ["half", "full"]
    assert found.points[0].params["bits"] == 8
    assert found.points[0].params["sparsity"] == 0.5
    finished = [line for line in lines if line.startswith("[")]
    assert finished[0].startswith("[1/11] baseline full: val/accuracy 0.9982, cost/packed_bytes 100 kB, ")
    assert finished[-1].startswith(f"[{11 + 2 * (points + 2)}/{11 + 2 * (points + 2)}] full, seed 102: ")
    assert any("trials 8 done, 0 stopped, 0 failed" in line for line in lines)
    assert all("\x1b" not in line for line in lines)
    assert lines[-1].split()[:1] == ["full"], "the front is printed with the dense baselines below it"


def test_what_each_run_is_told(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "a study's, folder"
    run_study(spec, bench, folder)
    configs = dict(bench.trained)
    identity = json.loads((folder / "study.json").read_text())["identity"]
    teacher, half, trial = configs["teacher-0"], configs["baseline-0"], configs["trial-0"]
    assert teacher["model"]["width"] == 2
    assert teacher["teacher"]["weights"] is None
    again = configs["confirm-baseline-0-101"]
    assert {run["measure"]["latency"] for run in configs.values()} == {False}, "it is timed alone, later"
    assert trial["measure"]["onnx"] is True
    assert again["measure"]["onnx"] is False, "a latency does not depend on the seed"
    assert half["teacher"]["weights"] is None
    place = folder / "runs/teacher-0"
    assert trial["teacher"] == {
        "weights": str(place / "weights.pt"),
        "model": teacher["model"],
        "outputs": str(place / "outputs"),
    }
    assert trial["wandb"] == {
        "mode": "disabled",
        "project": "p",
        "group": "tiny",
        "job_type": "trial",
        "name": "trial-0",
        "id": f"{identity}-trial-0",
        "tags": ["tiny", "trial"],
        "folder": str(folder),
    }
    assert Result.load(folder / "runs/trial-0").trial == 0
    assert (again["seed"], again["model"], again["wandb"]["job_type"]) == (101, {"width": 0.5}, "confirm")
    assert {config["seed"] for name, config in bench.trained if not name.startswith("confirm")} == {0}


def test_confirmation_keeps_the_selection(spec: StudySpec, make_bench: MakeBench, bench: Bench, tmp_path: Path) -> None:
    found, _ = run_study(spec, bench, tmp_path / "study")
    for point in (*found.front, *found.baselines):
        # The formula takes (seed mod 7) / 1000 off: 101 is 3, 102 is 4.
        assert point.confirmed == pytest.approx((point.values[0] - 0.003, point.values[0] - 0.004))
        assert point.test == pytest.approx({"test/accuracy": point.values[0] - 0.01})
    without = replace(spec, confirm_seeds=[], test=False)
    other, _ = run_study(without, make_bench(), tmp_path / "other")
    assert [point.name for point in other.front] == [point.name for point in found.front]
    assert {point.confirmed for point in other.front} == {()}
    assert not list((tmp_path / "other").rglob("test.json"))


def test_a_finished_study_runs_nothing_and_says_the_same(
    spec: StudySpec, make_bench: MakeBench, bench: Bench, tmp_path: Path
) -> None:
    first, lines = run_study(spec, bench, tmp_path / "study")
    idle = make_bench()
    second, again = run_study(spec, idle, tmp_path / "study")
    assert (idle.trained, idle.tested) == ([], [])
    assert second == first
    assert again[1:] == lines[1 - len(again) :]
    assert not [line for line in again if line.startswith("[")]


def test_more_trials_go_on_from_those_there_are(
    spec: StudySpec, make_bench: MakeBench, bench: Bench, tmp_path: Path
) -> None:
    run_study(replace(spec, trials=5, confirm_seeds=[], test=False), bench, tmp_path / "study")
    more = make_bench()
    found, _ = run_study(replace(spec, confirm_seeds=[], test=False), more, tmp_path / "study")
    assert more.names == ["trial-5", "trial-6", "trial-7"]
    straight, _ = run_study(replace(spec, confirm_seeds=[], test=False), make_bench(), tmp_path / "straight")
    assert [point.params for point in found.points] == [point.params for point in straight.points]


@pytest.mark.parametrize(
    "stopped_at",
    [
        "trial-3",
        *(pytest.param(run, marks=pytest.mark.slow) for run in ("teacher-0", "baseline-0", "confirm-baseline-1-102")),
    ],
)
def test_a_killed_study_ends_as_one_that_was_not(
    spec: StudySpec, make_bench: MakeBench, tmp_path: Path, stopped_at: str
) -> None:
    def killed(config: dict[str, Any]) -> dict[str, float]:
        if config["wandb"]["name"] == stopped_at:
            raise KeyboardInterrupt
        return {}

    first, rest, whole = make_bench(killed), make_bench(), make_bench()
    with pytest.raises(KeyboardInterrupt):
        run_study(spec, first, tmp_path / "study")
    found, _ = run_study(spec, rest, tmp_path / "study")
    straight, _ = run_study(spec, whole, tmp_path / "straight")
    assert first.names[-1] == rest.names[0] == stopped_at
    assert Counter(first.names[:-1] + rest.names) == Counter(whole.names)
    assert [(point.params, point.values) for point in found.front] == [
        (point.params, point.values) for point in straight.front
    ]
    assert found.count("done") == 8


def test_a_result_that_was_not_told_is_not_trained_again(
    spec: StudySpec, make_bench: MakeBench, bench: Bench, tmp_path: Path
) -> None:
    short = replace(spec, trials=3, confirm_seeds=[], test=False)
    run_study(replace(short, trials=2), bench, tmp_path / "study")
    trial = record.open_study(tmp_path / "study", spec).ask(check.check(spec, bench.tools).space)
    config = bench.tools.compose([f"bits={trial.params['bits']}", "++wandb.folder=x"])
    (tmp_path / "study/runs/trial-2").mkdir()
    toy.trial(config, str(tmp_path / "study/runs/trial-2"), [], 0.0)
    rest = make_bench()
    found, _ = run_study(short, rest, tmp_path / "study")
    assert rest.names == []
    assert found.count("done") == 3


def test_failing_trials_are_recorded_and_the_sweep_goes_on(
    spec: StudySpec, make_bench: MakeBench, tmp_path: Path
) -> None:
    def fails(config: dict[str, Any]) -> dict[str, float]:
        if config["wandb"]["name"] == "trial-1":
            raise ValueError("diverged\nbadly")
        return {"val/accuracy": float("inf")} if config["wandb"]["name"] == "trial-2" else {}

    found, lines = run_study(spec, make_bench(fails), tmp_path / "study")
    assert [(t.number, t.reason) for t in found.trials if t.state == "failed"] == [
        (1, "ValueError: diverged badly"),
        (2, "ValueError: the result of 'trial-2' is not finite (val/accuracy=inf)"),
    ]
    assert found.count("done") == 6
    line = next(line for line in lines if "trial 1 failed" in line)
    assert "ValueError: diverged badly (see " in line
    assert "1 done, 0 stopped, 1 failed" in line
    trace = (tmp_path / "study/runs/trial-1/error.txt").read_text()
    assert trace.startswith("Traceback")
    assert "diverged" in trace


def test_no_trial_at_all_is_an_error_with_the_last_reason(
    spec: StudySpec, make_bench: MakeBench, tmp_path: Path
) -> None:
    def fails(config: dict[str, Any]) -> dict[str, float]:
        if config["wandb"]["job_type"] == "trial":
            raise ValueError("no such layer")
        return {}

    with pytest.raises(ValueError, match=r"no trial .* has finished: 8 failed, the last one with ValueError: no such"):
        run_study(spec, make_bench(fails), tmp_path / "study")


@pytest.mark.parametrize("name", ["the teacher", "baseline half"])
def test_without_a_dense_net_there_is_no_study(
    spec: StudySpec, make_bench: MakeBench, tmp_path: Path, name: str
) -> None:
    def fails(config: dict[str, Any]) -> dict[str, float]:
        if config["model"]["width"] == {"the teacher": 2, "baseline half": 0.5}[name]:
            raise ValueError("out of luck")
        return {}

    with pytest.raises(ValueError, match=rf"{name} failed, nothing can be compared: ValueError: out of luck"):
        run_study(spec, make_bench(fails), tmp_path / "study")


def test_a_confirmation_that_fails_is_left_out(spec: StudySpec, make_bench: MakeBench, tmp_path: Path) -> None:
    def fails(config: dict[str, Any]) -> dict[str, float]:
        if config["wandb"]["name"] == "confirm-baseline-0-101":
            raise ValueError("bad luck")
        return {}

    found, lines = run_study(spec, make_bench(fails), tmp_path / "study")
    assert len(found.baselines[0].confirmed) == 1
    assert any("half, seed 101 failed: ValueError: bad luck" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"bitz": [2, 4]}, "enqueue": []}, "space, bitz=2: no key 'bitz'"),
        ({"confirm_seeds": [0, 5]}, "confirm_seeds must be fresh, but 0 is the seed of the trials"),
        ({"enqueue": [{"bits": 99}]}, "enqueue: bits=99 is outside the space"),
        ({"baselines": {"x": ["widht=1"]}, "reference": "x"}, "x: no key 'widht'"),
        ({"teacher": ["modle.width=1"]}, "teacher: no key 'modle.width'"),
    ],
)
def test_nothing_is_touched_when_the_study_is_wrong(
    spec: StudySpec, bench: Bench, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    good = replace(spec, trials=1, confirm_seeds=[])
    run_study(good, bench, tmp_path / "study")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as caught:
        run_study(replace(good, **change), bench, tmp_path / "study", fresh=True)
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_misnamed_objective_can_be_put_right(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    wrong = replace(spec, objectives={"val/accuracz": "max"})
    with pytest.raises(ValueError, match=r"objectives: no 'val/accuracz' in the result .* it has .*val/accuracy"):
        run_study(wrong, bench, tmp_path / "study")
    assert bench.names == ["baseline-1"]
    run_study(spec, bench, tmp_path / "study")
    assert bench.names.count("baseline-1") == 1


def test_another_study_does_not_continue_this_one(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    run_study(spec, bench, tmp_path / "study")
    other = replace(spec, space={"bits": [2, 4]}, enqueue=[])
    with pytest.raises(ValueError, match="begun with another space, enqueue"):
        run_study(other, bench, tmp_path / "study")
    found, _ = run_study(replace(other, trials=2), bench, tmp_path / "study", fresh=True)
    assert len(found.points) == 2
    assert (tmp_path / "study.previous/runs/trial-7/result.json").exists()
    assert not (tmp_path / "report/results/trial-7").exists()
    run_study(replace(other, trials=2), bench, tmp_path / "study", fresh=True)
    assert not (tmp_path / "study.previous/runs/trial-7").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_elses_is_left_alone(spec: StudySpec, bench: Bench, tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds no study but is not empty"):
        run_study(spec, bench, tmp_path / "study", fresh=fresh)
    assert (tmp_path / "study/thesis.tex").read_text() == "mine"


def test_one_process_at_a_time(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / ".study.lock"),
        pytest.raises(ValueError, match="another process is running the study"),
    ):
        run_study(spec, bench, tmp_path / "study")
    assert bench.trained == []


def test_the_engine_needs_no_optuna_but_through_one_file() -> None:
    code = (
        "import sys, lightning_compress.sweep.spec, lightning_compress.sweep.space;"
        "sys.exit('optuna' in sys.modules or 'plotly' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_trial_is_judged_before_its_own_data_is_trained_on(spec: StudySpec, bench: Bench) -> None:
    phases = [{"epochs": 5, "data": {"_target_": "x"}}, {"epochs": 20}]
    early, late = (replace(spec, fidelity={"ramp": ramp, "grace": 2}) for ramp in (4, 5))
    tools = replace(bench.tools, compose=lambda overrides: {**bench.tools.compose(overrides), "phases": phases})
    with pytest.raises(
        ValueError, match="fidelity, ramp: 4 epochs, but the first 5 train on other data: write ramp: 5"
    ):
        check.check(early, tools)
    assert min(check.check(late, tools).rungs) > 5
