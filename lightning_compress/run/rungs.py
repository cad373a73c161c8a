"""Rungs: epochs after which a run is measured as it stands and asks whether to go on."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl

from lightning_compress.core.method import Compact
from lightning_compress.core.rng import rng_state, set_rng_state
from lightning_compress.run import ranks
from lightning_compress.run.result import Result

Judge = Callable[[Compact, list[dict[str, float]]], Result | None]


def _never(epoch: int) -> bool:
    return False


@final
@dataclass(frozen=True)
class Rungs:
    """After each of `epochs`, counted from 1 over all phases, `ask(result, epoch)` says whether the run goes on.

    The result is that of the model as it is then, finalized and packed: validation metrics, costs without latency,
    the curve so far; its status is "paused". A run that goes on is the run that was never asked, bit for bit. One that
    stands on a rung when it is called again is asked again. A rung that `passed(epoch)` is true of when the run gets
    there is neither measured nor asked at.

    >>> Rungs([3, 9], lambda result, epoch: epoch < 9).epochs
    [3, 9]
    """

    epochs: Collection[int]
    ask: Callable[[Result, int], bool]
    passed: Callable[[int], bool] = _never


@final
class PausedError(Exception):
    """A run was stopped on a rung; `result` is what it was there. Its checkpoint stays, and the same call goes on."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"{result.name} paused")
        self.result = result


@final
class Climb(pl.callbacks.Checkpoint):
    """Stops at the rungs of a phase that begins after `first` epochs: saves the checkpoint, then lets `judge` look.

    A `Checkpoint`, since those come after all other callbacks and after the module's own end of an epoch. `judge` is
    called on every rank with the first one's finalized model and this phase's curve; what it returns, if not None, is
    in `paused`, and training ends there.
    """

    def __init__(self, checkpoint: Path, rungs: Rungs, judge: Judge, *, first: int) -> None:
        self.paused: Result | None = None
        self._checkpoint, self._rungs, self._judge, self._first = checkpoint, rungs, judge, first
        self._open = {epoch for epoch in rungs.epochs if epoch > first}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask again where the run was stopped on a rung."""
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, measure and ask if the epoch is a rung."""
        if self._epoch(pl_module) in self._open:
            trainer.save_checkpoint(self._checkpoint)
            self._look(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask again where the run was stopped at the end of the phase: there is nothing left to train."""
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epoch = self._epoch(pl_module)
        if epoch not in self._open:
            return
        self._open.remove(epoch)
        if ranks.shared(ranks.is_first() and self._rungs.passed(epoch)):
            return
        before = rng_state()
        compact: Any = ranks.shared(pl_module.finalize() if ranks.is_first() else None)
        self.paused = self._judge(compact, pl_module.epochs)
        set_rng_state(before)
        trainer.should_stop = trainer.should_stop or self.paused is not None

    def _epoch(self, module: Any) -> int:
        """Epochs trained, by the module's curve: the trainer's own count lags behind in some hooks."""
        return self._first + len(module.epochs)
