"""Training: one phase after another, each resumable, ending in a finalized model."""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lightning_compress.core import edits, moments, surgery
from lightning_compress.core.method import Compact, Edit, Method
from lightning_compress.core.moments import Moments
from lightning_compress.core.task import Task
from lightning_compress.module import CompressionModule, OptimizerFactory, SchedulerFactory
from lightning_compress.run import device, ranks
from lightning_compress.run.ground import Ground, carried
from lightning_compress.run.rungs import Climb, Judge, PausedError, Rungs

_TALKATIVE = ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric")


@final
@dataclass(frozen=True)
class Phase:
    """A stretch of training under one list of methods; `methods` is called when the phase begins.

    With no epochs the methods only look at data: post-training quantization. As is the custom, fine-tuning begins with
    a new optimizer: what the last one gathered belongs to the learning rate and the network of then. With
    `keep_optimizer` momentum and the like go on, cut to the channels that are left. A phase may have a `ground` of its
    own, other data than the job's; its figures go by its `name` then, "pretrain/val/accuracy".
    """

    methods: Callable[[], Sequence[Method]]
    epochs: int
    keep_optimizer: bool = False
    ground: Ground | None = None
    name: str = ""


@final
@dataclass(frozen=True)
class Job:
    """Everything that training needs, as objects.

    `build` makes the base network with its start weights; `trainer` holds arguments of `pl.Trainer`; `speed` may set
    `compile_model` and `channels_last`; `report` is told each epoch's figures. At the `rungs`
    `judge` is shown the finalized model and the curve, on every rank; what it returns, if not None, ends training.
    """

    build: Callable[[], nn.Module]
    data: pl.LightningDataModule
    task: Task
    phases: Sequence[Phase]
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory | None
    example: Any
    folder: Path
    trainer: dict[str, Any] = field(default_factory=dict)
    speed: dict[str, bool] = field(default_factory=dict)
    checkpoint_every: int = 1
    validate_every: int = 1
    report: Callable[[dict[str, float]], None] | None = None
    rungs: Rungs | None = None
    judge: Judge | None = None


@final
@dataclass(frozen=True)
class _Start:
    """What a phase starts from: the network, the edits that made it of the base network, the curve before.

    Of the optimizer before there is something only where the phase goes on with it.
    """

    model: nn.Module
    edits: list[Edit]
    curve: list[dict[str, float]]
    moments: Moments = field(default_factory=dict)


def fit(job: Job) -> tuple[Compact, list[dict[str, float]]]:
    """Train all phases, going on from the last checkpoint in `job.folder`; the finalized model and the curve.

    Raises:
        PausedError: `job.judge` stopped it on a rung.
        ValueError: a checkpoint that cannot be read, or a loss that became NaN.
    """
    start = _Start(_ground(job, 0).build(), [], [])
    compact: Compact | None = None
    curve: list[dict[str, float]] = []
    for number in range(len(job.phases)):
        handoff = job.folder / f"phase{number}.pt"
        if handoff.exists():
            start = _take_over(job, number, handoff)
            continue
        compact, curve, kept = _phase(job, number, start)
        if number < len(job.phases) - 1:
            start = _Start(_handed_over(job, number, compact), compact.edits, curve, kept)
            if ranks.is_first():
                state = start.model.state_dict()
                _save(handoff, {"state": state, "edits": start.edits, "curve": curve, "moments": kept})
    assert compact is not None, "a job has at least one phase, and the last leaves no hand-off"
    return compact, curve


def bare(model: nn.Module) -> nn.Module:
    """The finalized model as a start for the next phase: trainable, no quantizer on inputs and outputs."""
    for module in model.modules():
        surgery.take_from_input(module)
        surgery.take_from_output(module)
    return model.train().requires_grad_(True)


def _ground(job: Job, number: int) -> Ground:
    return job.phases[number].ground or Ground(job.build, job.data, job.task, job.example)


def _handed_over(job: Job, number: int, compact: Compact) -> nn.Module:
    """What the next phase starts from: the same network, or where its data is another, one for that."""
    model, after = bare(compact.model), job.phases[number + 1].ground
    if after is job.phases[number].ground:
        return model
    return carried(_ground(job, number + 1).build(), replace(compact, model=model))


def _take_over(job: Job, number: int, handoff: Path) -> _Start:
    saved = load_checkpoint(handoff)
    model = edits.replay(_ground(job, number + 1).build(), saved["edits"])
    model.load_state_dict(saved["state"])
    return _Start(model, saved["edits"], saved["curve"], saved.get("moments", {}))


def _cut(ground: Ground, start: _Start, compact: Compact, gathered: Moments) -> Moments:
    """What the phase's optimizer gathered on the channels that are left of its network."""
    base = edits.replay(ground.build(), start.edits)
    return moments.cut(gathered, base, compact.edits[len(start.edits) :])


def _save(path: Path, data: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(data, part)
    part.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        ValueError: the file is damaged or holds more than plain data.
    """
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "it ends early")
        raise ValueError(f"cannot read checkpoint {path}: {reason}; delete it to start over") from error
    return loaded


def _phase(job: Job, number: int, start: _Start) -> tuple[Compact, list[dict[str, float]], Moments]:
    phase, ground, checkpoint = job.phases[number], _ground(job, number), job.folder / f"phase{number}.ckpt"
    module = CompressionModule(
        start.model,
        ground.task,
        phase.methods(),
        example=ground.example,
        optimizer=job.optimizer,
        scheduler=job.scheduler,
        **_speed(job, start.model),
    )
    module.moments = start.moments
    if job.report is not None:
        report = job.report
        module.report = lambda row: report(_continued(start, [row], phase)[-1])
    climb = _climb(job, number, start)
    with _quiet(), _interruptible():
        trainer = _trainer(job, phase, [_keep(job, checkpoint), *([climb] if climb else [])])
        if checkpoint.exists():
            load_checkpoint(checkpoint)
        trainer.fit(
            module, datamodule=ground.data, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True
        )
    if climb and climb.paused:
        raise PausedError(climb.paused)
    compact, kept = _whole(start, module.finalize()), Moments()
    if any(following.keep_optimizer for following in job.phases[number + 1 : number + 2]):
        kept = _cut(ground, start, compact, moments.of(trainer.optimizers[0], module.model))
    return compact, _continued(start, module.epochs, phase), kept


def _continued(start: _Start, epochs: Sequence[dict[str, float]], phase: Phase) -> list[dict[str, float]]:
    """The curve with the epochs of a phase, which count from 0; on other data the figures go by the phase's name."""
    prefix = f"{phase.name}/" if phase.ground else ""
    rows = [{key if key == "epoch" else f"{prefix}{key}": value for key, value in row.items()} for row in epochs]
    return [*start.curve, *({**row, "epoch": row["epoch"] + len(start.curve)} for row in rows)]


def _whole(start: _Start, compact: Compact) -> Compact:
    """The phase's model with the edits of all phases."""
    return Compact(compact.model, compact.stored, [*start.edits, *compact.edits])


def _climb(job: Job, number: int, start: _Start) -> Climb | None:
    """What stops the phase at the rungs, if there are any."""
    judge = job.judge
    if judge is None or job.rungs is None:
        return None
    return Climb(
        job.folder / f"phase{number}.ckpt",
        job.rungs,
        lambda compact, rows: judge(_whole(start, compact), _continued(start, rows, job.phases[number])),
        first=len(start.curve),
    )


def _keep(job: Job, checkpoint: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=job.folder,
        filename=checkpoint.stem,
        every_n_epochs=job.checkpoint_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _speed(job: Job, model: nn.Module) -> dict[str, bool]:
    """The job's settings; a phase before may have made the model too narrow for one of them."""
    if job.speed.get("channels_last") and device.unsafe_channels_last(model) is not None:
        return {**job.speed, "channels_last": False}
    return job.speed


def _trainer(job: Job, phase: Phase, callbacks: list[pl.Callback]) -> pl.Trainer:
    try:
        return pl.Trainer(
            max_epochs=phase.epochs,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=max(1, min(job.validate_every, phase.epochs)),
            default_root_dir=job.folder,
            **job.trainer,
        )
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"the trainer refuses {job.trainer}: {error}") from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning answers an interrupt with `SystemExit` and leaves later ones ignored; undo both."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if here:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's hints are about data loaders and loggers that this project does not use."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning.*")
        warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # one job may train many runs
        warnings.filterwarnings(
            "ignore", message=".*does not have many workers.*|.*logging interval.*|.*exists and is not empty.*"
        )
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
