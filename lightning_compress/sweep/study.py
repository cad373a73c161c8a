"""The sampler and its memory: the only file that imports Optuna, owned by the one process that drives the sweep.

A trial is asked for, run by whoever asked, and told exactly once. The journal beside the runs holds everything, so a
killed process loses nothing; the n-th draw depends on the seed, n and the earlier results only, not on restarts.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lightning_compress.sweep import space as search
from lightning_compress.sweep.space import Space

State = Literal["done", "stopped", "failed", "running"]
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
_REDRAWS = 10
JOURNAL = "journal.log"


def _sampler(name: str) -> Callable[[int], optuna.samplers.BaseSampler]:
    return {
        # Recipes share conditions, so parameters are drawn jointly per group (arXiv 2304.11127).
        "tpe": lambda seed: optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed),
        "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
        "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed),
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }[name]


@final
@dataclass(frozen=True)
class Trial:
    """One configuration: what was drawn, how it ended (`reason` says why it failed) and what it reached.

    `repeats` is the number of the earlier trial with the same parameters, whose result it shares.
    """

    number: int
    params: dict[str, Any]
    state: State
    values: tuple[float, ...] | None = None
    reason: str = ""
    repeats: int | None = None


@final
class Study:
    """A study kept in the folder's journal, made on first use; `objectives` maps names to max or min.

    Raises:
        ValueError: the journal is damaged.
    """

    def __init__(self, folder: Path, *, name: str, objectives: Mapping[str, str], sampler: str, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._make_sampler, self._seed = _sampler(sampler), seed
        self._objectives = dict(objectives)
        journal = folder / JOURNAL
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))),
                study_name=name,
                directions=["maximize" if direction == "max" else "minimize" for direction in objectives.values()],
                load_if_exists=True,
            )
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            raise ValueError(
                f"{journal} is damaged ({error}): put back a copy, or write --fresh to begin the study anew"
            ) from error

    def enqueue(self, recipes: Sequence[Mapping[str, Any]]) -> None:
        """Start with these parameter sets, what they leave out is drawn; a recipe already there is not added again."""
        for recipe in recipes:
            self._study.enqueue_trial(dict(recipe), skip_if_exists=True)

    def ask(self, space: Space) -> Trial:
        """The next trial: running, or already ended as a repeat where only known parameters were drawn.

        A draw that was evaluated before is told its earlier result and drawn again, at most 10 times.
        """
        for draw in range(_REDRAWS + 1):
            trial = self._draw(space)
            params = dict(trial.params)
            earlier = self._evaluated(params)
            if earlier is None:
                trial.set_user_attr("asked", True)
                return Trial(trial.number, params, "running")
            trial.set_user_attr("repeats", earlier.number)
            # The last redraw counts as a trial: a small space would never fill its budget.
            trial.set_user_attr("counted", draw == _REDRAWS)
            if earlier.values is None:
                self.fail(trial.number, f"same parameters as trial {earlier.number}: {earlier.reason}")
            else:
                self._study.tell(trial.number, earlier.values)
        return self.trials(repeats=True)[-1]

    def tell(self, number: int, values: Sequence[float]) -> Trial:
        """Record the objectives of a running trial; one that is not finite makes it a failure.

        Raises:
            ValueError: the trial was told before.
        """
        bad = [f"{name}={v}" for name, v in zip(self._objectives, values, strict=True) if not math.isfinite(v)]
        if bad:
            return self.fail(number, f"not a finite number: {', '.join(bad)}")
        return _trial(self._study.tell(number, list(values)))

    def fail(self, number: int, reason: str) -> Trial:
        """Record that a running trial failed, and why.

        Raises:
            ValueError: the trial was told before.
        """
        frozen = self._study.get_trials(deepcopy=False)[number]
        if not frozen.state.is_finished():
            self._attribute(frozen, "reason", reason)
        return _trial(self._study.tell(number, state=TrialState.FAIL))

    def interrupted(self) -> list[Trial]:
        """Trials that were running when the process ended; each is offered once, a second time it has failed."""
        offered: list[Trial] = []
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not frozen.user_attrs.get("asked"):
                self._attribute(frozen, "counted", False)
                self.fail(frozen.number, "the process ended while the parameters were drawn")
            elif frozen.user_attrs.get("offered"):
                self.fail(frozen.number, "the process ended twice while this trial ran")
            else:
                self._attribute(frozen, "offered", True)
                offered.append(_trial(frozen))
        return offered

    def trials(self, *, repeats: bool = False) -> list[Trial]:
        """Every trial that was drawn, in order; with `repeats` also the draws that were known already."""
        return [
            _trial(frozen)
            for frozen in self._study.get_trials(deepcopy=False)
            if frozen.state in _STATES and (repeats or "repeats" not in frozen.user_attrs)
        ]

    @property
    def num_spent(self) -> int:
        """Trials that count against the budget: all but redraws."""
        trials = self._study.get_trials(deepcopy=False)
        return sum(frozen.state in _STATES and frozen.user_attrs.get("counted", True) for frozen in trials)

    def importances(self) -> dict[str, float]:
        """How much each parameter decides whether a trial reaches the front, adding up to 1, largest first.

        PED-ANOVA (arXiv 2304.10255). Nothing is said (empty) about fewer than four finished trials.
        """
        if len([trial for trial in self.trials() if trial.state == "done"]) < 4:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.importance.get_param_importances(self._study)

    def _draw(self, space: Space) -> optuna.Trial:
        number = len(self._study.get_trials(deepcopy=False, states=tuple(_STATES)))
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = self._make_sampler(seed)
            trial = self._study.ask()
            search.suggest(trial, space)
        return trial

    def _evaluated(self, params: Mapping[str, Any]) -> Trial | None:
        return next((t for t in self.trials() if t.state in ("done", "failed") and t.params == params), None)

    def _attribute(self, frozen: FrozenTrial, key: str, value: object) -> None:
        # Optuna offers this on a live trial only; a trial of an earlier process is known by its frozen copy.
        self._study._storage.set_trial_user_attr(frozen._trial_id, key, value)


def _trial(frozen: FrozenTrial) -> Trial:
    done = frozen.state == TrialState.COMPLETE
    return Trial(
        number=frozen.number,
        params=dict(frozen.params),
        state=_STATES[frozen.state],
        values=tuple(frozen.values) if done else None,
        reason=frozen.user_attrs.get("reason", ""),
        repeats=frozen.user_attrs.get("repeats"),
    )
