from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from lightning_compress.sweep import space
from lightning_compress.sweep.view import Direction, Policy, View, make_sampler

SPACE = space.parse(
    {
        "width": [0.25, 0.5, 1.0],
        "pattern": ["channel", "single"],
        "sparsity": {"low": 0.1, "high": 0.9, "when": {"pattern": "channel"}},
        "rate": {"low": 0.01, "high": 1.0, "log": True},
        "bits": {"low": 2, "high": 8, "int": True},
    }
)
DIRECTIONS: list[Direction] = ["maximize", "minimize", "minimize"]


def _evaluate(params: dict[str, Any]) -> list[float]:
    size = params["width"] ** 2 * params["bits"] * (1 - params.get("sparsity", 0.5))
    return [-float(np.exp(-size)) - 0.1 * params["rate"], size, params["width"] - 0.1 * params.get("sparsity", 0.0)]


def _study(trials: int, seed: int = 0, infeasible: float = 0.0) -> optuna.Study:
    """A study of random trials that ended; some are pruned, some failed, some run, and some break a constraint."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=seed))
    rng = np.random.default_rng(seed)
    for index in range(trials):
        trial = study.ask()
        params = space.suggest(trial, SPACE)
        trial.set_constraint("latency", float(rng.uniform(-1, 0) if rng.random() >= infeasible else rng.uniform(0, 1)))
        if index % 20 == 7:
            study.tell(trial, state=TrialState.FAIL)
        elif index % 20 == 8:
            trial.set_user_attr("values", _evaluate(params))
            study.tell(trial, state=TrialState.PRUNED)
        elif index % 20 != 9:
            study.tell(trial, _evaluate(params))
    return study


def _view(sampler: str = "tpe", policy: Policy = "value", limit: int = 500) -> View:
    return View(sampler, DIRECTIONS, constraints=["latency"], policy=policy, limit=limit)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("trials", [5, 60, 130])
@pytest.mark.parametrize("infeasible", [0.0, 0.5, 0.97])
def test_a_draw_is_the_one_optuna_makes(sampler: str, trials: int, infeasible: float) -> None:
    study = _study(trials, infeasible=infeasible)
    view = _view(sampler, policy="pruned")
    shown = view.update(study.get_trials(deepcopy=False), {})
    for seed in range(3):
        drawn = view.draw(SPACE, shown, fixed={}, number=trials + seed, seed=seed)
        study.sampler = make_sampler(sampler, seed)
        assert space.suggest(study.ask(), SPACE) == drawn.params
        # The next one is drawn without the trial that was only asked for here.
        study.tell(trials + seed, state=TrialState.FAIL)


def _kinds(policy: Policy, seen: Mapping[int, Sequence[float]]) -> list[tuple[int, str, list[float] | None]]:
    """How a done, a stopped, a failed, a paused and a running trial, and a repeat, are shown to NSGA-II."""
    study = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(6):
        space.suggest(study.ask(), SPACE)
    study.tell(0, [1.0, 2.0, 3.0])
    study._storage.set_trial_user_attr(1, "values", [4.0, 5.0, 6.0])
    study.tell(1, state=TrialState.PRUNED)
    study.tell(2, state=TrialState.FAIL)
    study._storage.set_trial_user_attr(5, "repeats", 0)
    study.tell(5, [1.0, 2.0, 3.0])
    shown = _view("nsga2", policy).update(study.trials, seen)
    assert all(trial.constraints == {"latency": 0.0} for trial in shown)
    return [(trial.number, trial.state.name, trial.values) for trial in shown]


def test_the_policy_says_what_unfinished_trials_count_for() -> None:
    done, running = (0, "COMPLETE", [1.0, 2.0, 3.0]), (4, "RUNNING", None)
    seen = {3: (7.0, 8.0, 9.0)}
    assert _kinds("value", seen) == [done, (1, "COMPLETE", [4, 5, 6]), (3, "COMPLETE", [7, 8, 9]), running]
    assert _kinds("pruned", seen) == [done, (1, "PRUNED", None), (3, "PRUNED", None), running]
    assert _kinds("none", seen) == [done, (1, "RUNNING", None), (3, "RUNNING", None), running]
    assert _kinds("value", {})[2:] == [(3, "RUNNING", None), running]
    assert set(get_args(Policy)) == {"value", "pruned", "none"}


def test_values_seen_may_change_until_a_trial_is_told() -> None:
    study = _study(40)
    view = _view()
    asked = study.ask()
    space.suggest(asked, SPACE)

    def shown(seen: Mapping[int, Sequence[float]]) -> FrozenTrial:
        return view.update(study.get_trials(deepcopy=False), seen)[-1]

    assert (shown({40: (0.0, 0.0, 0.0)}).state.name, shown({40: (0.0, 0.0, 0.0)}).values) == ("COMPLETE", [0, 0, 0])
    assert shown({40: (-9.0, 9.0, 9.0)}).values == [-1, 1, 1]
    assert shown({}).state.name == shown({40: (float("nan"), 1.0, 1.0)}).state.name == "RUNNING"
    study.tell(asked, [0.0, 0.0, 0.0])
    assert shown({}).values == [0, 0, 0]


def test_infeasible_trials_are_never_good() -> None:
    study = _study(100, infeasible=0.5)
    view = _view()
    for trial in view.update(study.get_trials(deepcopy=False), {}):
        if trial.values == [0, 0, 0]:
            assert study.trials[trial.number].constraints["latency"] <= 0


def test_tpe_is_shown_all_good_trials_and_an_even_part_of_the_others() -> None:
    study = _study(400, infeasible=0.2)
    everything = _view(limit=1000).update(study.get_trials(deepcopy=False), {})
    part = _view(limit=100).update(study.get_trials(deepcopy=False), {})
    assert sum(trial.state != TrialState.RUNNING for trial in part) == 100
    assert [t.number for t in part if t.state == TrialState.RUNNING] == [
        t.number for t in everything if t.state == TrialState.RUNNING
    ]
    best = [trial.number for trial in part if trial.values == [0, 0, 0]]
    assert len(best) == 10
    frozen = study.get_trials(deepcopy=False)
    kept = [trial for trial in frozen if trial.values and trial.constraints["latency"] <= 0]
    losses = np.array([trial.values for trial in kept]) * [-1, 1, 1]
    for number in best:  # none is beaten by a feasible one
        loss = np.array(frozen[number].values) * [-1, 1, 1]
        assert not ((losses <= loss).all(axis=1) & (losses < loss).any(axis=1)).any()
    gaps = np.diff([trial.number for trial in part])
    assert gaps.max() <= 12


def test_with_few_feasible_trials_the_least_infeasible_are_shown() -> None:
    study = _study(300, infeasible=1.0)
    part = _view(limit=50).update(study.get_trials(deepcopy=False), {})
    violations = sorted(
        trial.constraints["latency"]
        for trial in study.trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    )
    assert set(violations[:5]) <= {trial.constraints["latency"] for trial in part}


def test_one_objective_is_shown_as_it_is() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials([optuna.trial.create_trial(value=float(index)) for index in range(30)])
    view = View("tpe", ["maximize"], constraints=(), policy="value")
    assert [trial.values for trial in view.update(study.trials, {})] == [[float(index)] for index in range(30)]


def test_a_draw_does_not_depend_on_the_order_in_which_trials_ended() -> None:
    branches = space.parse(
        {
            "pattern": ["channel", "single"],
            "a": {"low": 0.1, "high": 0.9, "when": {"pattern": "channel"}},
            "b": {"low": 0.1, "high": 0.9, "when": {"pattern": "single"}},
        }
    )
    study = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=0))
    for index in range(30):
        study.enqueue_trial({"pattern": "channel" if index % 3 == 0 else "single"})
        trial = study.ask()
        space.suggest(trial, branches)
        if index % 3:
            study.tell(trial, [float(index), 1.0, 1.0])
    old, new = _view(), _view()
    old.update(study.get_trials(deepcopy=False), {})
    for index in range(0, 30, 3):
        study.tell(index, [float(index), 1.0, 1.0])
    trials = study.get_trials(deepcopy=False)
    for seed in range(5):
        drawn = [v.draw(branches, v.update(trials, {}), fixed={}, number=30, seed=seed) for v in (old, new)]
        assert drawn[0].params == drawn[1].params
