"""What a sampler sees of a study, and what it draws from that: nothing is kept from one draw to the next.

Optuna's samplers know finished trials only. Here a trial that was stopped, or that runs and reported at a rung, may be
shown as finished with the values it had there. A draw is a pure function of the seed and what is shown.
"""

import copy
import math
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from lightning_compress.sweep import space as search
from lightning_compress.sweep.good import good
from lightning_compress.sweep.space import Space, Value

Policy = Literal["value", "pruned", "none"]
Direction = Literal["minimize", "maximize"]
_SHOW_AS: dict[Policy, TrialState] = {
    "value": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "none": TrialState.RUNNING,
}
PARENTS = "parents"
_GOOD_SHARE = 0.1


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler called `name`.

    That is tpe, tpe_group (parameters of one condition drawn jointly, arXiv 2304.11127), nsga2, nsga3, gp or random.
    """
    makers: dict[str, Callable[[], BaseSampler]] = {
        # One by one and after five random trials, since that was measured to win: see reports/tables/lcbench.md.
        "tpe": lambda: optuna.samplers.TPESampler(n_startup_trials=5, multivariate=False, seed=seed),
        "tpe_group": lambda: optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "nsga3": lambda: optuna.samplers.NSGAIIISampler(seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return makers[name]()


@final
@dataclass(frozen=True)
class Drawn:
    """Parameters with the ranges they came from, and what the sampler wants to find again at later draws."""

    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    system_attrs: dict[str, Any]


@final
class View:
    """Shows a study to the sampler called `sampler`; `directions` are Optuna's, `limit` bounds what TPE looks at.

    Beyond `limit` trials TPE is shown its good ones, chosen among all, and an even selection of the others.
    """

    def __init__(
        self,
        sampler: str,
        directions: Sequence[Direction],
        *,
        constraints: Sequence[str],
        policy: Policy,
        limit: int = 500,
    ) -> None:
        self._sampler, self._directions, self._constraints = sampler, list(directions), tuple(constraints)
        self._signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
        self._state, self._limit = _SHOW_AS[policy], limit
        self._ended: dict[int, FrozenTrial] = {}
        self._losses: dict[int, NDArray[np.float64]] = {}
        self._layouts: dict[tuple[str, ...], FrozenTrial] = {}
        self._parents: dict[str, list[int]] = {}
        self._num_read = 0

    def update(self, trials: Sequence[FrozenTrial], seen: Mapping[int, Sequence[float]]) -> list[FrozenTrial]:
        """What is shown of `trials`, all trials of the study; `seen` holds rung values of those not told yet."""
        shown: list[FrozenTrial] = []
        for trial in trials:
            if trial.number in self._ended:
                shown.append(self._ended[trial.number])
            elif trial.state != TrialState.FAIL and "repeats" not in trial.user_attrs:
                shown.append(self._show(trial, seen.get(trial.number)))
        for trial in trials[self._num_read :]:
            self._parents |= trial.system_attrs.get(PARENTS, {})
        self._num_read = len(trials)
        # In the order of trials, which a restart keeps, not in that of their ends.
        self._layouts = {}
        for trial in shown:
            if trial.state != TrialState.RUNNING:
                self._layouts.setdefault(tuple(trial.params), trial)
        return self._split(shown) if self._sampler == "tpe" and len(self._directions) > 1 else shown

    def draw(
        self,
        space: Space,
        shown: list[FrozenTrial],
        *,
        fixed: Mapping[str, Any],
        number: int,
        seed: int,
        blindly: bool = False,
    ) -> Drawn:
        """Parameters for trial `number`, `blindly` at random; those in `fixed` are taken as they are."""
        memory = _Memory(shown)
        study = optuna.create_study(storage=memory, directions=self._directions)
        for key, value in self._parents.items():
            memory.set_study_system_attr(study._study_id, key, value)
        trial = _frozen(number, TrialState.RUNNING, {}, {}, memory.drawn)
        sampler = make_sampler("random" if blindly else self._sampler, seed)
        sampler.before_trial(study, trial)
        ranges = sampler.infer_relative_search_space(self._layout(study), trial)
        joint = sampler.sample_relative(study, trial, ranges)
        search.suggest(_Hand(study, sampler, trial, {**joint, **fixed}), space)
        parents = memory.get_study_system_attrs(study._study_id)
        fresh = {key: value for key, value in parents.items() if key not in self._parents}
        # What was drawn jointly is known from the parameters.
        kept = {key: value for key, value in memory.drawn.items() if "relative_params" not in key}
        return Drawn(trial.params, trial.distributions, kept | ({PARENTS: fresh} if fresh else {}))

    def _layout(self, study: optuna.Study) -> optuna.Study:
        """A study that tells TPE which parameters come together: one trial of each kind says so a lot faster."""
        if self._sampler != "tpe":
            return study
        return optuna.create_study(storage=_Memory(list(self._layouts.values())), directions=self._directions)

    def _show(self, trial: FrozenTrial, seen: Sequence[float] | None) -> FrozenTrial:
        ended = trial.state.is_finished()
        values = trial.values if trial.state == TrialState.COMPLETE else trial.user_attrs.get("values", seen)
        state = TrialState.COMPLETE if trial.state == TrialState.COMPLETE else self._state
        # A number that is not finite says nothing yet: the trial may still fail, or recover.
        if values is None or not all(map(math.isfinite, values)) or (not ended and seen is None):
            state = TrialState.RUNNING
        # Samplers count a missing constraint as kept, GPSampler refuses it.
        attrs = {f"constraints:{key}": 0.0 for key in self._constraints} | trial.system_attrs
        shown = _frozen(trial.number, state, trial.params, trial.distributions, attrs)
        self._losses.pop(trial.number, None)
        if state == TrialState.COMPLETE and values is not None:
            shown.values = list(values)
            if _violation(shown) == 0:
                self._losses[trial.number] = np.asarray(values, float) * self._signs
        if ended:
            self._ended[trial.number] = shown
        return shown

    def _split(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        """Do TPE's split into good and other trials for it, which takes it longer than all the rest.

        TPE asks values for this split only, so good trials get zeros, others ones; the good are the ones it would take
        itself: the best fronts, of the last one the greedy hypervolume subset (doi 10.1613/jair.1.13188).
        """
        ended = [trial for trial in trials if trial.state != TrialState.RUNNING]
        num_good = math.ceil(_GOOD_SHARE * min(len(ended), self._limit))
        feasible = [trial for trial in ended if trial.number in self._losses]
        best: set[int] = set()
        if feasible:
            losses = np.stack([self._losses[trial.number] for trial in feasible])
            best = {feasible[index].number for index in good(losses, min(num_good, len(feasible)))}
        zeros, ones = [0.0] * len(self._signs), self._signs.tolist()
        for trial in feasible:
            trial.values = zeros if trial.number in best else ones
        if len(ended) <= self._limit:
            return trials
        if len(best) < num_good:
            left = [trial for trial in ended if trial.number not in best]
            left.sort(key=lambda trial: (_violation(trial), trial.number))
            best |= {trial.number for trial in left[: num_good - len(best)]}
        others = [trial.number for trial in ended if trial.number not in best]
        picked = np.linspace(0, len(others) - 1, self._limit - len(best)).round().astype(int)
        kept = best | {others[index] for index in picked}
        return [trial for trial in trials if trial.state == TrialState.RUNNING or trial.number in kept]


def recorded(
    space: Space, params: Mapping[str, Any], values: Sequence[float], violations: Mapping[str, float]
) -> FrozenTrial:
    """A finished trial that is known from elsewhere.

    >>> recorded(search.parse({"model.width": [0.5, 1.0]}), {"model.width": 1}, [0.9], {}).params
    {'model.width': 1.0}
    """
    study, trial = optuna.create_study(storage=_Memory([])), _frozen(0, TrialState.RUNNING, {}, {}, {})
    search.suggest(_Hand(study, optuna.samplers.RandomSampler(seed=0), trial, params), space)
    return optuna.trial.create_trial(
        params=trial.params, distributions=trial.distributions, values=values, constraints=dict(violations)
    )


@final
class _Memory(InMemoryStorage):
    """A storage whose trials are the ones it is given; what a sampler notes about the trial it draws is in `drawn`."""

    def __init__(self, trials: list[FrozenTrial]) -> None:
        super().__init__()
        self._shown = trials
        self.drawn: dict[str, Any] = {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials it was given."""
        trials = [trial for trial in self._shown if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Note something about the trial that is drawn."""
        self.drawn[key] = value


@final
class _Hand:
    """Takes the values it is given, and draws those that are missing one by one."""

    def __init__(self, study: optuna.Study, sampler: BaseSampler, trial: FrozenTrial, given: Mapping[str, Any]) -> None:
        self._study, self._sampler, self._trial, self._given = study, sampler, trial, given

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._value(name, CategoricalDistribution(tuple(choices)))
        return self._set(name, choices[list(choices).index(value)])

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        return float(self._set(name, float(self._value(name, FloatDistribution(low, high, log=log, step=step)))))

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        return int(self._set(name, int(self._value(name, IntDistribution(low, high, log=log, step=step)))))

    def _value(self, name: str, distribution: BaseDistribution) -> Any:
        self._trial.distributions[name] = distribution
        if name in self._given:
            return self._given[name]
        return self._sampler.sample_independent(self._study, self._trial, name, distribution)

    def _set(self, name: str, value: Value) -> Any:
        self._trial.params[name] = value
        return value


def _violation(trial: FrozenTrial) -> float:
    return sum(value for value in trial.constraints.values() if value > 0)


def _frozen(
    number: int, state: TrialState, params: dict[str, Any], ranges: dict[str, BaseDistribution], attrs: dict[str, Any]
) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params=params,
        distributions=ranges,
        user_attrs={},
        system_attrs=attrs,
        intermediate_values={},
    )
