"""Trials under a stopping rule, run in this process over the stand-in for training."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_compress.run.result import Result
from lightning_compress.sweep import ledger, record
from lightning_compress.sweep.record import StudyRecord
from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import Bench, run_study

RUNGS = (1, 3)


@pytest.fixture
def racing(spec: StudySpec) -> StudySpec:
    """Trials of nine epochs, compared after one and three."""
    return replace(
        spec,
        base=["kind=plain", "epochs=9"],
        fidelity={"grace": 1},
        trials=14,
        confirm_seeds=[],
        test=False,
        teacher=None,
    )


def _ends(found: StudyRecord) -> list[tuple[int, str, int | None, tuple[float, ...] | None]]:
    return [(trial.number, trial.state, trial.epochs, trial.values) for trial in found.trials]


def test_stopped_trials_keep_their_point_and_only_full_ones_are_on_the_front(racing: StudySpec, tmp_path: Path) -> None:
    bench = Bench()
    found, _ = run_study(racing, bench, tmp_path / "study")
    states = Counter(trial.state for trial in found.trials)
    assert states["done"] + states["stopped"] == 14
    assert min(states.values()) >= 3
    for point in found.points:
        trained = Counter(bench.epochs)
        last = point.epochs or 9
        assert [trained[point.run, epoch] for epoch in range(1, 10)] == [1] * last + [0] * (9 - last)
        assert point.epochs in (*RUNGS, None)
        assert point.result.status == ("done" if point.epochs is None else "paused")
        assert point.values[0] == point.result.get("val/accuracy")
        assert point.values[2] == point.result.cost["latency_ratio"], "a stopped trial is timed as well"
    assert all(point.epochs is None for point in found.front)


def test_what_is_paused_goes_on_from_its_checkpoint_when_it_is_promoted(racing: StudySpec, tmp_path: Path) -> None:
    bench = Bench()
    run_study(racing, bench, tmp_path / "study")
    promoted = [
        (event["run"], event["epoch"]) for event in ledger.read(tmp_path / "study") if event["event"] == "promote"
    ]
    assert promoted
    order = [name for name, _ in bench.epochs]
    following = [(name, bench.epochs.index((name, epoch + 1))) for name, epoch in promoted]
    assert any(order[at - 1] != name for name, at in following), "others ran in between"


@pytest.mark.parametrize("at", [12, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 25, 40))])
def test_a_driver_killed_in_any_epoch_ends_with_the_same_study(racing: StudySpec, tmp_path: Path, at: int) -> None:
    straight, _ = run_study(racing, Bench(), tmp_path / "straight")

    def dies(number: int) -> None:
        if number == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(racing, Bench(each_epoch=dies), tmp_path / "study")
    found, _ = run_study(racing, Bench(), tmp_path / "study")
    assert _ends(found) == _ends(straight)
    assert [point.params for point in found.front] == [point.params for point in straight.front]


def test_a_limit_on_what_is_known_early_stops_a_trial_at_its_first_rung(racing: StudySpec, tmp_path: Path) -> None:
    limited = replace(racing, constraints={"cost/packed_bytes": {"max": 8000}})
    found, _ = run_study(limited, Bench(), tmp_path / "study")
    for trial in found.trials:
        size = Result.load(tmp_path / f"study/runs/trial-{trial.number}", "rung-1.json").cost["packed_bytes"]
        assert trial.feasible == (size <= 8000)
        assert trial.violations == {"cost/packed_bytes max": size - 8000}
        if size > 8000:
            assert (trial.state, trial.epochs, trial.reason) == ("stopped", 1, "breaks cost/packed_bytes max")
    assert {trial.feasible for trial in found.trials} == {True, False}
    assert all(point.result.cost["packed_bytes"] <= 8000 for point in found.front)


def test_what_breaks_a_limit_at_the_end_is_not_on_the_front(spec: StudySpec, tmp_path: Path) -> None:
    limited = replace(spec, constraints={"val/accuracy": {"min": 0.93}}, confirm_seeds=[], test=False)
    found, lines = run_study(limited, Bench(), tmp_path / "study")
    below = [trial.number for trial in found.trials if not trial.feasible]
    assert below
    assert below == [trial.number for trial in found.trials if trial.values and trial.values[0] < 0.93]
    assert not {f"trial {number}" for number in below} & {point.name for point in found.front}
    assert sum(", breaks a constraint" in line for line in lines) == len(below)


def test_a_limit_on_no_number_is_an_error_that_names_the_nearest(spec: StudySpec, tmp_path: Path) -> None:
    wrong = replace(spec, constraints={"cost/packed_byte": {"max": 8000}})
    with pytest.raises(ValueError, match="did you mean 'cost/packed_bytes'"):
        run_study(wrong, Bench(), tmp_path / "study")


def test_a_budget_of_trainings_ends_the_study(racing: StudySpec, tmp_path: Path) -> None:
    bench = Bench()
    found, _ = run_study(replace(racing, trials=1000, trainings=4), bench, tmp_path / "study")
    spent = sum(name.startswith("trial") for name, _ in bench.epochs)
    assert 4 * 9 <= spent < 5 * 9
    assert 4 < len(found.trials) < 36


def test_a_study_that_grows_goes_on(racing: StudySpec, tmp_path: Path) -> None:
    first, _ = run_study(replace(racing, trials=6), Bench(), tmp_path / "study")
    found, _ = run_study(racing, Bench(), tmp_path / "study")
    assert len(found.trials) == 14
    assert _ends(found)[:6] == _ends(first), "what was told stays as it was told"


def test_an_earlier_front_is_tried_first(racing: StudySpec, tmp_path: Path) -> None:
    earlier, _ = run_study(replace(racing, enqueue=[]), Bench(), tmp_path / "earlier")
    warm = replace(racing, name="warm", enqueue=[], warm_start=[str(tmp_path / "earlier")])
    found, _ = run_study(warm, Bench(), tmp_path / "warm")
    best = [point.params for point in earlier.front]
    assert [trial.params for trial in found.trials[: len(best)]] == best


def test_records_can_be_read_while_trials_run(racing: StudySpec, tmp_path: Path) -> None:
    seen: list[int] = []

    def look(number: int) -> None:
        with suppress(ValueError):  # none has finished yet
            seen.append(len(record.collect(tmp_path / "study").points))

    run_study(racing, Bench(each_epoch=look), tmp_path / "study")
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_stopping_needs_a_dense_baseline_to_time_beside(racing: StudySpec, tmp_path: Path) -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="name one under baselines"):
        run_study(replace(racing, baselines={}, reference=None), bench, tmp_path / "study")
    assert not bench.trained
