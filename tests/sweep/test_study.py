import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from lightning_compress.sweep import space
from lightning_compress.sweep.study import Study, importances

SPACE = space.parse(
    {
        "width": [0.25, 0.5, 1.0],
        "pattern": ["channel", "single"],
        "sparsity": {"low": 0.1, "high": 0.9, "when": {"pattern": "channel"}},
        "bits": {"low": 2, "high": 8, "int": True},
    }
)
SMALL = space.parse({"width": [0.5, 1.0]})
OBJECTIVES = {"accuracy": "max", "bytes": "min"}


def _open(folder: Path | None, sampler: str = "tpe", seed: int = 0, **more: Any) -> Study:
    return Study(folder, name="s", objectives=OBJECTIVES, sampler=sampler, seed=seed, **more)


def _score(params: dict[str, Any]) -> tuple[float, float]:
    size = params["width"] * params.get("bits", 8) * (1 - params.get("sparsity", 0))
    return 1 - math.exp(-size), size


def _run(study: Study, trials: int, asked: space.Space = SPACE) -> list[dict[str, Any]]:
    drawn = []
    while study.num_spent < trials:
        trial = study.ask(asked)
        drawn.append(trial.params)
        if trial.state == "running":
            study.tell(trial.number, _score(trial.params))
    return drawn


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random"])
def test_a_restart_changes_no_draw(tmp_path: Path, sampler: str) -> None:
    (tmp_path / "b").mkdir()
    recipes = [{"width": 1.0, "bits": 8}, {"width": 0.5}]
    whole = _open(None, sampler)
    whole.enqueue(recipes)
    expected = _run(whole, 15)
    drawn = []
    for trials in (1, 2, 12, 15):
        part = _open(tmp_path / "b", sampler)
        part.enqueue(recipes)
        drawn += _run(part, trials)
    assert drawn == expected
    assert (expected[0]["width"], expected[0]["bits"], expected[1]["width"]) == (1.0, 8, 0.5)
    assert len({str(params) for params in expected}) == 15


@pytest.mark.parametrize("restart", [0, 1, 3])
def test_a_restart_changes_no_draw_while_trials_run_side_by_side(tmp_path: Path, restart: int) -> None:
    """Three at a time, the last of them is told first; one is seen at a rung and fails, one is stopped."""

    # Two branches, so that the order in which TPE meets them matters, and no two draws alike.
    body: dict[str, Any] = {"pattern": ["channel", "single"], "width": {"low": 0.1, "high": 1.0}}
    body |= {
        name: {"low": 0.1, "high": 0.9, "when": {"pattern": kind}}
        for name, kind in zip("ab", body["pattern"], strict=True)
    }
    wide = space.parse(body)

    def batch(study: Study, left: int) -> list[dict[str, Any]]:
        asked = [study.ask(wide)]
        seen = {asked[0].number: _score(asked[0].params)}
        asked += [study.ask(wide, seen), study.ask(wide, seen)]
        study.tell(asked[2].number, _score(asked[2].params))
        study.stop(asked[1].number, _score(asked[1].params), epochs=1)
        if left % 2:
            study.fail(asked[0].number, "no")
        else:
            study.tell(asked[0].number, _score(asked[0].params))
        return [trial.params for trial in asked]

    whole = _open(None)
    expected = [params for left in range(10) for params in batch(whole, left)]
    drawn, part = [], _open(tmp_path)
    for left in range(10):
        if restart and left % restart == 0:
            part = _open(tmp_path)
        drawn += batch(part, left)
    assert drawn == expected


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_a_restart_keeps_the_parents_of_a_generation(tmp_path: Path, sampler: str) -> None:
    asked = space.parse({key: {"low": 0.0, "high": 1.0} for key in "abc"})

    def run(study: Study, trials: int) -> list[dict[str, Any]]:
        drawn = []
        while study.num_spent < trials:
            trial = study.ask(asked)
            drawn.append(trial.params)
            study.tell(trial.number, (trial.params["a"], trial.params["b"] + trial.params["c"]))
        return drawn

    whole = run(_open(None, sampler), 170)
    (tmp_path / "b").mkdir()
    drawn = []
    for trials in (90, 102, 130, 151, 170):
        drawn += run(_open(tmp_path / "b", sampler), trials)
    assert drawn == whole


def test_the_seed_decides() -> None:
    drawn = [_run(_open(None, seed=seed), 4) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_gp_draws_with_constraints_and_unfinished_trials() -> None:
    flat = space.parse({"width": {"low": 0.1, "high": 1.0}})
    study = _open(None, "gp", constraints=["latency"])
    for index in range(10):
        trial = study.ask(flat)
        if index == 3:
            study.fail(trial.number, "no")
        elif index == 4:
            study.stop(trial.number, _score(trial.params), epochs=1, violations={"latency": 1.0})
        elif index not in (5, 6):
            study.tell(trial.number, _score(trial.params), violations={"latency": trial.params["width"] - 0.5})
    seen = {5: (0.5, 1.0)}
    while study.num_spent < 11:
        study.tell(study.ask(flat, seen).number, (0.5, 1.0), violations={"latency": -1.0})
    assert [trial.number for trial in study.interrupted()] == [5, 6]


def test_recipes_are_drawn_once_each_even_after_a_kill(tmp_path: Path) -> None:
    recipes: list[dict[str, Any]] = [
        {"width": 1.0, "pattern": "channel", "sparsity": 0.5, "bits": 8},
        {"width": 0.5},
        {"width": 0.5},
    ]
    for expected in (recipes[0], recipes[1]):
        study = _open(tmp_path)
        study.enqueue(recipes)
        params = study.ask(SPACE).params
        assert {key: params[key] for key in expected} == expected
    study = _open(tmp_path)
    study.enqueue([*recipes, {"bits": 3}])
    assert study.ask(SPACE).params["bits"] == 3
    assert len({str(trial.params) for trial in study.trials()}) == 3
    assert [trial.number for trial in study.interrupted()] == [0, 1, 2]
    queued = optuna.load_study(study_name="s", storage=study._study._storage).user_attrs["recipes"]
    assert queued == [recipes[0], {"width": 0.5}, {"bits": 3}]


def test_a_recipe_written_as_a_whole_number_is_drawn_as_the_range_says() -> None:
    study = _open(None)
    study.enqueue([{"width": 1, "pattern": "channel", "sparsity": 0.5}])
    params = study.ask(SPACE).params
    assert repr(params["width"]) == "1.0"


def test_an_exhausted_space_reuses_results_and_ends(tmp_path: Path) -> None:
    study = _open(tmp_path)
    drawn = _run(study, 6, SMALL)
    assert len(drawn) == 6
    assert [trial.params["width"] for trial in study.trials()] == [drawn[0]["width"], 1.5 - drawn[0]["width"]]
    repeats = [trial for trial in study.trials(repeats=True) if trial.repeats is not None]
    assert len(repeats) == 4
    for trial in repeats:
        assert trial.values == _score(trial.params)
        assert study.trial(trial.repeats or 0).params == trial.params
    assert _open(tmp_path).trials(repeats=True) == study.trials(repeats=True)


def test_parameters_of_a_running_trial_are_drawn_only_when_nothing_else_is_left() -> None:
    study = _open(None)
    first, second = study.ask(SMALL), study.ask(SMALL)
    assert first.params != second.params
    third = study.ask(SMALL)
    assert (third.state, third.repeats) == ("running", None)


def test_a_failed_recipe_is_not_tried_again() -> None:
    study = _open(None)
    while study.num_spent < 4:
        trial = study.ask(SMALL)
        if trial.state == "running":
            study.fail(trial.number, "ValueError: no")
    assert len(study.trials()) == 2
    repeats = [trial for trial in study.trials(repeats=True) if trial.repeats is not None]
    assert all("same parameters as trial" in trial.reason and "ValueError: no" in trial.reason for trial in repeats)


def test_a_stopped_trial_keeps_its_values(tmp_path: Path) -> None:
    study = _open(tmp_path, constraints=["latency"])
    number = study.ask(SMALL).number
    study.stop(number, (0.5, 8), epochs=3, violations={"latency": 0.25}, reason="rung 3")
    again = _open(tmp_path, constraints=["latency"])
    stopped = again.trial(number)
    assert (stopped.state, stopped.values, stopped.epochs, stopped.reason) == ("stopped", (0.5, 8.0), 3, "rung 3")
    assert (stopped.violations, stopped.feasible) == ({"latency": 0.25}, False)
    while (repeat := again.ask(SMALL)).state == "running":
        again.tell(repeat.number, (0.5, 1.0), violations={"latency": -1})
    origin = again.trial(repeat.repeats or 0)
    assert (repeat.state, repeat.values, repeat.epochs) == (origin.state, origin.values, origin.epochs)
    assert repeat.violations == origin.violations


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_fails_the_trial(bad: float) -> None:
    study = _open(None)
    told = study.tell(study.ask(SPACE).number, (0.5, bad))
    assert told == study.trials()[0]
    assert told.state == "failed"
    assert told.reason == f"not a finite number: bytes={bad}"
    assert told.values is None
    assert study.stop(study.ask(SPACE).number, (bad, bad), epochs=1).reason.endswith(f"accuracy={bad}, bytes={bad}")


def test_a_trial_is_told_once() -> None:
    study = _open(None)
    number = study.ask(SPACE).number
    study.tell(number, (0.5, 1.0))
    with pytest.raises(ValueError, match="trial 0 was told before: it is done"):
        study.tell(number, (0.6, 1.0))
    with pytest.raises(ValueError, match="was told before"):
        study.fail(number, "late")
    with pytest.raises(ValueError, match="was told before"):
        study.stop(number, (0.6, 1.0), epochs=1)
    assert study.trials()[0].values == (0.5, 1.0)
    assert study.trials()[0].reason == ""
    with pytest.raises(ValueError, match="there is no trial 1, the study has 1"):
        study.trial(1)


def test_every_constraint_must_be_told() -> None:
    study = _open(None, constraints=["latency", "bytes"])
    number = study.ask(SPACE).number
    with pytest.raises(ValueError, match=r"trial 0: expected violations of \['latency', 'bytes'\], got \['latency'\]"):
        study.tell(number, (0.5, 1.0), violations={"latency": 0.0})
    assert study.trial(number).state == "running"
    other = study.ask(SPACE).number
    failed = study.tell(other, (0.5, 1.0), violations={"latency": math.nan, "bytes": 0})
    assert (failed.state, failed.reason, failed.violations) == ("failed", "not a finite number: latency=nan", {})
    told = study.tell(number, (0.5, 1.0), violations={"latency": 0.0, "bytes": -2})
    assert told.feasible
    assert told.violations == {"latency": 0.0, "bytes": -2.0}


def test_an_interrupted_trial_is_told_by_the_next_process(tmp_path: Path) -> None:
    asked = _open(tmp_path).ask(SPACE)
    for _ in range(3):
        again = _open(tmp_path)
        assert again.interrupted() == [asked]
    again.tell(asked.number, (0.5, 1.0))
    assert _open(tmp_path).interrupted() == []
    assert _open(tmp_path).num_spent == 1


def test_a_draw_is_one_record(tmp_path: Path) -> None:
    study = _open(tmp_path)
    study.enqueue([{"bits": 8}])
    for _ in range(2):
        before = (tmp_path / "journal.log").read_bytes().count(b"\n")
        study.ask(SPACE)
        assert (tmp_path / "journal.log").read_bytes().count(b"\n") == before + 1
    records = [json.loads(line) for line in (tmp_path / "journal.log").read_text().splitlines()]
    assert "relative_params" not in str(records)


def test_the_journal_is_what_optuna_reads(tmp_path: Path) -> None:
    _run(_open(tmp_path), 5)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in study.trials] == [list(_score(trial.params)) for trial in study.trials]


def test_importances_find_the_parameter_that_matters() -> None:
    study = _open(None, "random")
    asked = space.parse({"matters": {"low": 0.0, "high": 1.0}, "idle": {"low": 0.0, "high": 1.0}})
    for _ in range(3):
        study.tell(study.ask(asked).number, (0.1, 1.0))
    assert importances(study.trials(), asked, OBJECTIVES) == {}
    for _ in range(40):
        trial = study.ask(asked)
        study.tell(trial.number, (trial.params["matters"], -trial.params["matters"]))
    study.stop(study.ask(asked).number, (9.0, 9.0), epochs=1)
    shares = importances(study.trials(), asked, OBJECTIVES)
    assert list(shares) == ["matters", "idle"]
    assert shares["matters"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
