"""Sweeps on the LCBench surrogate with a simulated clock: the shipped study and stopping rule, nothing trained.

Epochs take equal time on every worker. Objectives are the validation error and the logarithm of layers times units,
scaled to [0, 1]; the second is known before training.
"""

import functools
import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import moocore  # type: ignore[import-untyped]
import numpy as np
import onnxruntime
import optuna
import scipy.special
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.samplers._tpe import _truncnorm

from lightning_compress.sweep import space, view
from lightning_compress.sweep.rungs import Ranking, Rule
from lightning_compress.sweep.space import Space
from lightning_compress.sweep.study import Study
from lightning_compress.sweep.view import Policy, make_sampler

Array = NDArray[np.float64]
HORIZON = 52
CEILING_DRAWS = 5000
SPACE = space.parse(
    {
        "batch_size": {"low": 16, "high": 512, "log": True, "int": True},
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "momentum": {"low": 0.1, "high": 0.99},
        "weight_decay": {"low": 1e-5, "high": 0.1},
        "num_layers": {"low": 1, "high": 5, "int": True},
        "max_units": {"low": 64, "high": 1024, "log": True, "int": True},
        "max_dropout": {"low": 0.0, "high": 1.0},
    }
)
_KEYS = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
_OBJECTIVES = {"error": "min", "size": "min"}
_LEAST, _MOST = 64, 5 * 1024

# Optuna computes these element by element in Python to do without SciPy; the numbers are the same.
_truncnorm._log_ndtr = scipy.special.log_ndtr
_truncnorm._ndtri_exp = scipy.special.ndtri_exp


@final
@dataclass(frozen=True)
class Variant:
    """How a sweep is run: who draws, when trials are compared, and what the sampler sees of the unfinished ones.

    `sampler` is "optuna" (Optuna's own loop as it comes), "joint" (TPE over all parameters jointly) or one that a study
    may name; `startup` random trials come before TPE; `values` are the objectives that trials are compared by. With
    `finish` the end of the budget is kept for finishing the paused trials that no other one beats, largest gain first.
    """

    sampler: str
    levels: tuple[int, ...] = (3, 9)
    eta: int = 3
    ranking: Ranking = "hypervolume"
    startup: int = 5
    policy: Policy = "value"
    promote: bool = True
    finish: bool = False
    values: tuple[str, ...] = ("error", "size")


class Surrogate:
    """Predicts the error of a network on one task after some epochs; `folder` holds the surrogate's files."""

    def __init__(self, folder: Path, task: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._code = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"][task]
        self.ceiling = self._ceiling()

    def errors(self, params: Sequence[Mapping[str, Any]], epochs: Sequence[int]) -> Array:
        """Validation errors in [0, 1], [trials, epochs]."""
        rows = [[epoch, *(one[key] for key in _KEYS)] for one in params for epoch in epochs]
        inputs = {"x_cat": np.full((len(rows), 1), self._code, np.int32), "x_cont": np.array(rows, np.float32)}
        # The outputs are time, validation accuracy in percent, then losses and balanced accuracies.
        accuracy = np.clip(self._session.run(None, inputs)[0][:, 1].astype(float), 0, 100)
        errors: Array = (1 - accuracy / 100).reshape(len(params), len(epochs))
        return errors

    def _ceiling(self) -> float:
        drawn = _random()
        return volume(list(zip(self.errors(drawn, [HORIZON])[:, 0], map(size, drawn), strict=True)))


@functools.cache
def _random() -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=12345))
    drawn = []
    for _ in range(CEILING_DRAWS):
        trial = optuna.trial.Trial(study, study._storage.create_new_trial(study._study_id))
        space.suggest(trial, SPACE)
        drawn.append(dict(trial.params))
    return drawn


def size(params: Mapping[str, Any]) -> float:
    """Logarithm of layers times units, 0 for the smallest and 1 for the largest network."""
    return math.log(params["num_layers"] * params["max_units"] / _LEAST) / math.log(_MOST / _LEAST)


def volume(points: Sequence[Sequence[float]]) -> float:
    """Hypervolume under the reference point (1, 1)."""
    return float(moocore.hypervolume(np.array(points), ref=[1.0, 1.0])) if points else 0.0


class Sampling(Protocol):
    """What draws: the shipped study, or Optuna's own."""

    def ask(self, drawn: Space, seen: Mapping[int, Sequence[float]]) -> Any:
        """A trial with `number`, `params` and `state`."""

    def tell(self, number: int, values: Sequence[float]) -> Any:
        """Take the objectives of a trial that was trained in full."""


@final
class _Optuna:
    """Optuna as it comes, with the sampler that it takes for two objectives."""

    def __init__(self, seed: int) -> None:
        self._study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.TPESampler(seed=seed))

    def ask(self, drawn: Space, seen: Mapping[int, Sequence[float]]) -> optuna.Trial:
        trial = self._study.ask()
        space.suggest(trial, drawn)
        return trial

    def tell(self, number: int, values: Sequence[float]) -> None:
        self._study.tell(number, values)


def sampling(variant: Variant, seed: int) -> Sampling:
    """What draws the trials of a variant; TPE's settings are compared here, so they are put in the view's place."""
    if variant.sampler == "optuna":
        return _Optuna(seed)

    def make(name: str, seed: int) -> BaseSampler:
        if name != "tpe":
            return make_sampler(name, seed)
        joint: dict[str, Any] = {"multivariate": True, "group": True} if variant.sampler == "joint" else {}
        return optuna.samplers.TPESampler(n_startup_trials=variant.startup, seed=seed, **joint)

    view.make_sampler = make
    name = "tpe" if variant.sampler == "joint" else variant.sampler
    return Study(None, name="sweep", objectives=_OBJECTIVES, sampler=name, seed=seed, policy=variant.policy)


@dataclass
class _Trial:
    number: int
    size: float
    errors: dict[int, float]
    epoch: int = 0  # trained by now
    target: int = 0  # where the worker that has it stops
    final: bool = False  # is not compared any more

    @property
    def point(self) -> tuple[float, float]:
        return self.errors[self.epoch], self.size


@dataclass
class Sweep:
    """One sweep of a variant: `trainings` full trainings on `workers` workers; `run` says what was reached when."""

    surrogate: Surrogate
    variant: Variant
    seed: int
    workers: int
    trainings: int = 20
    trials: dict[int, _Trial] = field(default_factory=dict)
    _seen: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        variant = self.variant
        self._stops = (*variant.levels, HORIZON)
        self._sampling = sampling(variant, self.seed)
        self._rule = Rule(variant.levels, ["min"] * len(variant.values), eta=variant.eta, ranking=variant.ranking)
        self._left = self.trainings * HORIZON
        self._busy: list[tuple[int, int, _Trial]] = []
        self._events = 0

    def run(self) -> Iterator[tuple[int, _Trial, int, tuple[float, float]]]:
        """Epochs spent by all workers so far, the trial that stopped somewhere, the epoch there, and its point."""
        clock = spent = 0
        while True:
            while len(self._busy) < self.workers and (trial := self._next()) is not None:
                self._start(trial, clock)
            if not self._busy:
                return
            end, _, trial = heapq.heappop(self._busy)
            spent += (end - clock) * (len(self._busy) + 1)
            clock = end
            trial.epoch = trial.target
            yield spent, trial, trial.epoch, trial.point
            if self._goes_on(trial):
                self._start(trial, clock)

    def _next(self) -> _Trial | None:
        if self.variant.finish and (trial := self._last_chance()):
            self._rule.promoted(trial.number, trial.epoch)
            trial.final = True
            return trial
        if self.variant.promote:
            for number, level in self._rule.promotable():
                if self._cost(self.trials[number]) <= self._left:
                    self._rule.promoted(number, level)
                    return self.trials[number]
        return self._draw() if self._stops[0] <= self._left else None

    def _last_chance(self) -> _Trial | None:
        """The paused trial to finish now, if no more than finishing the paused part of the front can be paid for."""
        known = [trial for trial in self.trials.values() if trial.epoch]
        if not known:
            return None
        points = np.array([trial.point for trial in known])
        gains = moocore.hv_contributions(points, ref=[1.0, 1.0])
        paused = [i for i, trial in enumerate(known) if trial.target == trial.epoch < HORIZON and gains[i] > 0]
        running = sum(HORIZON - trial.target for trial in self.trials.values() if trial.target > trial.epoch)
        if self._left - running > sum(HORIZON - known[i].epoch for i in paused):
            return None
        paused = [i for i in paused if HORIZON - known[i].epoch <= self._left]
        return known[max(paused, key=lambda i: float(gains[i]))] if paused else None

    def _draw(self) -> _Trial:
        drawn = self._sampling.ask(SPACE, self._seen)
        errors = self.surrogate.errors([drawn.params], self._stops)[0].tolist()
        trial = _Trial(drawn.number, size(drawn.params), dict(zip(self._stops, errors, strict=True)))
        self.trials[trial.number] = trial
        return trial

    def _start(self, trial: _Trial, clock: int) -> None:
        cost = self._cost(trial)
        trial.target = trial.epoch + cost
        self._left -= cost
        self._events += 1
        heapq.heappush(self._busy, (clock + cost, self._events, trial))

    def _cost(self, trial: _Trial) -> int:
        target = HORIZON if trial.final else next(stop for stop in self._stops if stop > trial.epoch)
        return target - trial.epoch

    def _goes_on(self, trial: _Trial) -> bool:
        if trial.epoch == HORIZON:
            self._seen.pop(trial.number, None)
            self._sampling.tell(trial.number, trial.point)
            return False
        self._seen[trial.number] = trial.point
        compared = dict(zip(_OBJECTIVES, trial.point, strict=True))
        go = self._rule.report(trial.number, trial.epoch, [compared[name] for name in self.variant.values])
        # One that cannot be paid for any more stays where it is.
        return go and self._cost(trial) <= self._left
