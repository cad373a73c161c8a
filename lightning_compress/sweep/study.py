"""The trials of a sweep and what comes next, owned by the one process that drives the sweep.

A trial is asked for, run by whoever asked, and told exactly once. Everything is in the storage, so a killed process
loses nothing; the n-th draw depends on the seed, n and what is known by then only, not on restarts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_compress.sweep import store
from lightning_compress.sweep.space import Space
from lightning_compress.sweep.view import Direction, Drawn, Policy, View, recorded

optuna.logging.set_verbosity(optuna.logging.ERROR)  # one line for each trial otherwise, and one for each study

State = Literal["done", "stopped", "failed", "running"]
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
_REDRAWS = 10
_RECIPES = "recipes"


@final
@dataclass(frozen=True)
class Trial:
    """One configuration: what was drawn, how it ended (`reason` says why it failed or was stopped) and what it reached.

    A stopped trial has the `values` of the last rung it reached, after `epochs` epochs. `violations` above 0 are broken
    constraints. `repeats` is the number of the earlier trial with the same parameters, whose result it shares.
    """

    number: int
    params: dict[str, Any]
    state: State
    values: tuple[float, ...] | None = None
    reason: str = ""
    repeats: int | None = None
    epochs: int | None = None
    violations: dict[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether no constraint is broken."""
        return all(violation <= 0 for violation in self.violations.values())


@final
class Study:
    """A study kept in memory (`folder` None), the folder's journal, or the database at the URL `storage`.

    It is made on first use; `objectives` maps names to max or min. On a database `name` must be this study's alone.
    `policy` is what the sampler makes of trials that are not fully trained: "value" takes what the last rung said for
    their result, "pruned" counts them among the bad ones, "none" only keeps away from them.

    Raises:
        ValueError: the journal is damaged, or the database cannot be used.

    >>> from lightning_compress.sweep import space
    >>> study = Study(None, name="s", objectives={"val/accuracy": "max"}, sampler="tpe", seed=0)
    >>> trial = study.ask(space.parse({"model.width": [0.5, 1.0]}))
    >>> study.tell(trial.number, [0.9]).state
    'done'
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        name: str,
        objectives: Mapping[str, str],
        sampler: str,
        seed: int,
        storage: str | None = None,
        constraints: Sequence[str] = (),
        policy: Policy = "value",
    ) -> None:
        self._objectives, self._constraints, self._seed = dict(objectives), tuple(constraints), seed
        directions = _directions(objectives)
        self._view = View(sampler, directions, constraints=constraints, policy=policy)
        kept = store.open_storage(folder, storage)
        # The sampler at work is the view's; this one only keeps Optuna from making its default.
        unused = optuna.samplers.RandomSampler(seed=0)
        # Made only when it is not there: making writes, and reading a study must not.
        if name in optuna.get_all_study_names(kept):
            self._study = optuna.load_study(study_name=name, storage=kept, sampler=unused)
        else:
            self._study = optuna.create_study(study_name=name, storage=kept, directions=directions, sampler=unused)
        self._known: dict[frozenset[tuple[str, Any]], int] = {}
        self._known_until = 0

    def enqueue(self, recipes: Sequence[Mapping[str, Any]]) -> None:
        """Draw these parameter sets first, what they leave out is drawn; a recipe already there is not added again."""
        queue = self._recipes()
        fresh = [dict(recipe) for recipe in recipes]
        longer = queue + [recipe for index, recipe in enumerate(fresh) if recipe not in [*queue, *fresh[:index]]]
        if longer != queue:
            self._study.set_user_attr(_RECIPES, longer)

    def ask(self, space: Space, seen: Mapping[int, Sequence[float]] | None = None) -> Trial:
        """The next trial: running, or already ended as a repeat where only known parameters were drawn.

        `seen` holds the latest rung values of trials that are not told yet, running or paused. Parameters that another
        trial has are drawn again, at most 10 times, the last five at random: then they are run if that other one is not
        told yet either.
        """
        frozen = self._frozen()
        shown = self._view.update(frozen, seen or {})
        for trial in frozen[self._known_until :]:
            self._known.setdefault(frozenset(trial.params.items()), trial.number)
        self._known_until = len(frozen)
        index, recipe = self._next_recipe(frozen)
        for draw in range(_REDRAWS + 1):
            seed = int(np.random.SeedSequence([self._seed, len(frozen), draw]).generate_state(1)[0])
            blindly = draw > _REDRAWS // 2  # the sampler insists on what is known
            drawn = self._view.draw(space, shown, fixed=recipe, number=len(frozen), seed=seed, blindly=blindly)
            known = self._known.get(frozenset(drawn.params.items()))
            # What is fixed as a whole can only be drawn again.
            if known is None or drawn.params.keys() <= recipe.keys():
                break
        attrs = {} if index is None else {"recipe": index}
        if known is not None and frozen[known].state.is_finished():
            return self._repeat(drawn, _trial(frozen[known]), attrs)
        return self._add(drawn, TrialState.RUNNING, attrs)

    def tell(self, number: int, values: Sequence[float], *, violations: Mapping[str, float] | None = None) -> Trial:
        """Record the objectives of a running trial; a number that is not finite makes it a failure.

        `violations` has a number for each constraint of the study, at most 0 where it is kept.

        Raises:
            ValueError: the trial was told before, or a constraint is missing.
        """
        if failed := self._refuse(number, values, violations):
            return failed
        return _trial(self._study.tell(number, list(values)))

    def stop(
        self,
        number: int,
        values: Sequence[float],
        *,
        epochs: int,
        violations: Mapping[str, float] | None = None,
        reason: str = "",
    ) -> Trial:
        """Record that a running trial was stopped for good after `epochs` epochs, with the objectives it had there.

        Raises:
            ValueError: the trial was told before, or a constraint is missing.
        """
        if failed := self._refuse(number, values, violations):
            return failed
        self._note(self._one(number), values=[float(value) for value in values], epochs=epochs, reason=reason)
        return _trial(self._study.tell(number, state=TrialState.PRUNED))

    def fail(self, number: int, reason: str, violations: Mapping[str, float] | None = None) -> Trial:
        """Record that a running trial failed, and why.

        Raises:
            ValueError: the trial was told before.
        """
        trial = self._running(number)
        self._constrain(trial, violations or {})
        self._note(trial, reason=reason)
        return _trial(self._study.tell(number, state=TrialState.FAIL))

    def interrupted(self) -> list[Trial]:
        """Trials that are not told; right after opening, those that ran when the last process ended."""
        return [_trial(frozen) for frozen in self._frozen() if frozen.state == TrialState.RUNNING]

    def trials(self, *, repeats: bool = False) -> list[Trial]:
        """Every trial that was drawn, in order; with `repeats` also the draws that were known already."""
        return [_trial(frozen) for frozen in self._frozen() if repeats or "repeats" not in frozen.user_attrs]

    def trial(self, number: int) -> Trial:
        """The trial of that number.

        Raises:
            ValueError: there is none.
        """
        return _trial(self._one(number))

    @property
    def num_spent(self) -> int:
        """Trials that count against the budget, repeats as well: a small space would never fill it."""
        return len(self._frozen())

    def _frozen(self) -> list[FrozenTrial]:
        # Numbers are positions; nothing but this class adds trials, and it adds them with all their parameters.
        return self._study.get_trials(deepcopy=False)

    def _one(self, number: int) -> FrozenTrial:
        frozen = self._frozen()
        if not 0 <= number < len(frozen):
            raise ValueError(f"there is no trial {number}, the study has {len(frozen)}")
        return frozen[number]

    def _recipes(self) -> list[dict[str, Any]]:
        return list(self._study.user_attrs.get(_RECIPES, []))

    def _next_recipe(self, frozen: Sequence[FrozenTrial]) -> tuple[int | None, dict[str, Any]]:
        used = {trial.user_attrs.get("recipe") for trial in frozen}
        return next(((i, recipe) for i, recipe in enumerate(self._recipes()) if i not in used), (None, {}))

    def _repeat(self, drawn: Drawn, earlier: Trial, attrs: dict[str, Any]) -> Trial:
        attrs |= {"repeats": earlier.number, "reason": earlier.reason}
        constraints = earlier.violations
        if earlier.state == "failed":
            attrs["reason"] = f"same parameters as trial {earlier.number}: {earlier.reason}"
            return self._add(drawn, TrialState.FAIL, attrs, constraints=constraints)
        if earlier.state == "stopped":
            attrs |= {"values": earlier.values, "epochs": earlier.epochs}
            return self._add(drawn, TrialState.PRUNED, attrs, constraints=constraints)
        return self._add(drawn, TrialState.COMPLETE, attrs, constraints=constraints, values=earlier.values)

    def _add(self, drawn: Drawn, state: TrialState, attrs: dict[str, Any], **result: Any) -> Trial:
        """Write a trial in one record, so that no half of it can be left."""
        trial = optuna.trial.create_trial(
            state=state,
            params=drawn.params,
            distributions=drawn.distributions,
            user_attrs=attrs,
            system_attrs=drawn.system_attrs,
            **result,
        )
        # `Study.add_trial` does not say which trial it made, and the last one may be another process's by now.
        storage = self._study._storage
        return _trial(storage.get_trial(storage.create_new_trial(self._study._study_id, template_trial=trial)))

    def _running(self, number: int) -> FrozenTrial:
        trial = self._one(number)
        if trial.state != TrialState.RUNNING:
            raise ValueError(f"trial {number} was told before: it is {_STATES[trial.state]}")
        return trial

    def _refuse(self, number: int, values: Sequence[float], violations: Mapping[str, float] | None) -> Trial | None:
        """Record constraints; where an objective is no number the trial has failed."""
        trial, violations = self._running(number), violations or {}
        if set(violations) != set(self._constraints):
            expected, got = list(self._constraints), list(violations)
            raise ValueError(f"trial {number}: expected violations of {expected}, got {got}")
        numbers = [*zip(self._objectives, values, strict=True), *violations.items()]
        bad = [f"{name}={value}" for name, value in numbers if not math.isfinite(value)]
        if bad:
            return self.fail(number, f"not a finite number: {', '.join(bad)}")
        self._constrain(trial, violations)
        return None

    # Optuna offers the next two on a live trial only; here a trial is known by its frozen copy.

    def _constrain(self, trial: FrozenTrial, violations: Mapping[str, float]) -> None:
        for key, value in violations.items():
            self._study._storage.set_trial_system_attr(trial._trial_id, f"constraints:{key}", float(value))

    def _note(self, trial: FrozenTrial, **attrs: Any) -> None:
        for key, value in attrs.items():
            self._study._storage.set_trial_user_attr(trial._trial_id, key, value)


def importances(trials: Sequence[Trial], space: Space, objectives: Mapping[str, str]) -> dict[str, float]:
    """How much each parameter decides whether a trial reaches the front, adding up to 1, largest first.

    PED-ANOVA (arXiv 2304.10255) over fully trained trials. Nothing is said (empty) about fewer than four.
    """
    done = [trial for trial in trials if trial.state == "done"]
    if len(done) < 4:
        return {}
    study = optuna.create_study(directions=_directions(objectives))
    study.add_trials([recorded(space, trial.params, trial.values or (), trial.violations) for trial in done])
    return optuna.importance.get_param_importances(study)


def _directions(objectives: Mapping[str, str]) -> list[Direction]:
    return ["maximize" if direction == "max" else "minimize" for direction in objectives.values()]


def _trial(frozen: FrozenTrial) -> Trial:
    values = frozen.values if frozen.state == TrialState.COMPLETE else frozen.user_attrs.get("values")
    state = _STATES[frozen.state]
    return Trial(
        number=frozen.number,
        params=dict(frozen.params),
        state=state,
        values=tuple(values) if values and state in ("done", "stopped") else None,
        reason=frozen.user_attrs.get("reason", ""),
        repeats=frozen.user_attrs.get("repeats"),
        epochs=frozen.user_attrs.get("epochs") if state == "stopped" else None,
        violations=dict(frozen.constraints),
    )
