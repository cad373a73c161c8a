import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from lightning_compress.sweep import space
from lightning_compress.sweep.study import Study, Trial

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


def _open(folder: Path, sampler: str = "tpe", seed: int = 0) -> Study:
    return Study(folder, name="s", objectives=OBJECTIVES, sampler=sampler, seed=seed)


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
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    recipes = [{"width": 1.0, "bits": 8}, {"width": 0.5}]
    whole = _open(tmp_path / "a", sampler)
    whole.enqueue(recipes)
    expected = _run(whole, 15)
    first = _open(tmp_path / "b", sampler)
    first.enqueue(recipes)
    drawn = _run(first, 12)
    second = _open(tmp_path / "b", sampler)
    second.enqueue(recipes)
    assert drawn + _run(second, 15) == expected
    assert (expected[0]["width"], expected[0]["bits"], expected[1]["width"]) == (1.0, 8, 0.5)
    assert len({str(params) for params in expected}) == 15


def test_the_seed_decides(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        drawn.append(_run(_open(tmp_path / name, seed=seed), 4))
    assert drawn[0] == drawn[1] != drawn[2]


def test_gp_draws_from_a_flat_space(tmp_path: Path) -> None:
    flat = space.parse({"width": {"low": 0.1, "high": 1.0}})
    assert len(_run(_open(tmp_path, "gp"), 11, flat)) == 11


def test_an_exhausted_space_reuses_results_and_ends(tmp_path: Path) -> None:
    study = _open(tmp_path)
    drawn = _run(study, 6, SMALL)
    assert len(drawn) == 6
    distinct = dict.fromkeys(params["width"] for params in drawn)
    assert [trial.params for trial in study.trials()] == [{"width": width} for width in distinct]
    repeats = [trial for trial in study.trials(repeats=True) if trial.repeats is not None]
    assert repeats
    for trial in repeats:
        assert trial.values == _score(trial.params)
        assert study.trials(repeats=True)[trial.repeats or 0].params == trial.params


def test_a_failed_recipe_is_not_tried_again(tmp_path: Path) -> None:
    study = _open(tmp_path)
    while study.num_spent < 4:
        trial = study.ask(SMALL)
        if trial.state == "running":
            study.fail(trial.number, "ValueError: no")
    assert len(study.trials()) == 2
    repeats = [trial for trial in study.trials(repeats=True) if trial.repeats is not None]
    assert all("same parameters as trial" in trial.reason and "ValueError: no" in trial.reason for trial in repeats)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_fails_the_trial(tmp_path: Path, bad: float) -> None:
    study = _open(tmp_path)
    told = study.tell(study.ask(SPACE).number, (0.5, bad))
    assert told == study.trials()[0]
    assert told.state == "failed"
    assert told.reason == f"not a finite number: bytes={bad}"


def test_a_trial_is_told_once(tmp_path: Path) -> None:
    study = _open(tmp_path)
    number = study.ask(SPACE).number
    study.tell(number, (0.5, 1.0))
    with pytest.raises(ValueError):
        study.tell(number, (0.6, 1.0))
    with pytest.raises(ValueError):
        study.fail(number, "late")
    assert study.trials()[0].values == (0.5, 1.0)
    assert study.trials()[0].reason == ""


def test_an_interrupted_trial_is_offered_once(tmp_path: Path) -> None:
    asked = _open(tmp_path).ask(SPACE)
    again = _open(tmp_path)
    assert again.interrupted() == [Trial(asked.number, asked.params, "running")]
    assert again.num_spent == 1
    third = _open(tmp_path)
    assert third.interrupted() == []
    assert third.trials()[0].reason == "the process ended twice while this trial ran"
    assert third.trials()[0].state == "failed"


def test_a_trial_cut_off_while_it_was_drawn_costs_nothing(tmp_path: Path) -> None:
    study = _open(tmp_path)
    study._study.ask()
    again = _open(tmp_path)
    assert again.interrupted() == []
    assert again.num_spent == 0
    assert again.trials()[0].state == "failed"


def test_the_journal_is_what_optuna_reads(tmp_path: Path) -> None:
    _run(_open(tmp_path), 5)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in study.trials] == [list(_score(trial.params)) for trial in study.trials]


def test_importances_find_the_parameter_that_matters(tmp_path: Path) -> None:
    study = _open(tmp_path, "random")
    asked = space.parse({"matters": {"low": 0.0, "high": 1.0}, "idle": {"low": 0.0, "high": 1.0}})
    for _ in range(3):
        study.tell(study.ask(asked).number, (0.1, 1.0))
    assert study.importances() == {}
    for _ in range(40):
        trial = study.ask(asked)
        study.tell(trial.number, (trial.params["matters"], -trial.params["matters"]))
    shares = study.importances()
    assert list(shares) == ["matters", "idle"]
    assert shares["matters"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
