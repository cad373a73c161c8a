"""One run: a configuration in, a Result out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_compress.core.method import Compact
from lightning_compress.core.task import Task
from lightning_compress.cost.macs import macs
from lightning_compress.data.labelled import LabelledData
from lightning_compress.distill.teacher import fingerprint
from lightning_compress.export import pieces
from lightning_compress.export.files import write_onnx
from lightning_compress.run import build, device, identity, log, measure, priced, ranks, settings, teaching
from lightning_compress.run.figures import figures
from lightning_compress.run.fit import Job, Phase, fit
from lightning_compress.run.ground import Ground
from lightning_compress.run.result import FILE, Result
from lightning_compress.run.rungs import Judge, PausedError, Rungs
from lightning_compress.run.targets import Config, ConfigError
from lightning_compress.run.teacher_outputs import data_digest, teacher_outputs
from lightning_compress.tracking import wandb
from lightning_compress.tracking.provenance import provenance

Report = Callable[[dict[str, float]], None]


def train(config: Config, folder: Path, rungs: Rungs | None = None) -> Result:
    """Train, finalize, export, check, measure and record one run in `folder`.

    A finished folder is returned as it is, an unfinished one is resumed from its last checkpoint. Of several processes
    only the first one measures, writes and logs; the others wait and return what it has saved. Where `rungs` stop the
    run, what it was there is returned, with status "paused", and nothing is recorded: the same call goes on.

    Raises:
        ConfigError: `folder` holds a run of another configuration.
        ValueError: anything else that is wrong with the configuration or the data.
    """
    if identity.is_same(config, folder) and (folder / FILE).exists():
        return Result.load(folder)
    started = time.time()
    rungs = rungs or Rungs((), _never_asked)
    _check_rungs(config, rungs)
    if not ranks.is_first():
        return _follow(config, folder, rungs)
    digest = identity.claim(config, folder)
    with _threads(config["speed"]["threads"]), log.tracked(config, folder, digest) as run:
        try:
            setting = _priceable(_set_up(config, folder))
            result = _finish(_fit(setting, rungs, started, partial(log.epoch, config["name"], run)))
        except PausedError as pause:
            log.summary(run, pause.result)
            return pause.result
        result.wall_seconds = time.time() - started
        result.provenance |= {"wandb": run.url} if run.url else {}
        result.save(folder)
        log.summary(run, result)
        log.layers(run, result)
    return result


def _follow(config: Config, folder: Path, rungs: Rungs) -> Result:
    """What the other processes of a run do: train with the first one, and wait for what it records."""
    try:
        with _threads(config["speed"]["threads"]):
            _fit(_set_up(config, folder), rungs, time.time(), None)
    except PausedError as pause:
        return pause.result
    ranks.wait_for(folder / FILE)
    return Result.load(folder)


def _never_asked(result: Result, epoch: int) -> bool:
    raise AssertionError("there is no rung")


def _check_rungs(config: Config, rungs: Rungs) -> None:
    epochs, phases = sum(phase["epochs"] for phase in build.phases(config)), build.phases(config)
    own = max((number for number, phase in enumerate(phases, start=1) if phase["data"] is not None), default=0)
    first = sum(phase["epochs"] for phase in phases[:own])
    wrong = [epoch for epoch in rungs.epochs if not max(1, first + 1) <= epoch < epochs]
    if wrong:
        after = f"the {first} epochs on other data" if first else "the first"
        raise ConfigError(f"a rung comes after {after} and before the last of {epochs} epochs; got {wrong}")


@final
@dataclass(frozen=True)
class _Setting:
    """What training and measuring share."""

    config: Config
    folder: Path
    data: Any
    node: Config
    make: Callable[[], nn.Module]
    task: Task
    teacher: Callable[[], nn.Module]
    grounds: list[Ground | None]


@final
@dataclass(frozen=True)
class _Fitted:
    """What training leaves to be measured."""

    setting: _Setting
    compact: Compact
    history: list[dict[str, float]]


def _set_up(config: Config, folder: Path) -> _Setting:
    settings.check_runtimes(config["measure"])  # it may have been composed on another machine
    pl.seed_everything(config["seed"], verbose=False)
    data = build.data(config)
    node = build.architecture(config["model"], data, config["allow"])
    make = build.builder(node, config)
    task = build.task(config, data)
    base = make()
    build.check_fit(base, data)
    grounds = build.grounds(config, Ground(make, data, task, data.example))
    build.rehearse(config, make, data, partial(teaching.stand_in, config, data), grounds)
    teacher = partial(teaching.load_teacher, config, data, folder, train)
    return _Setting(config, folder, data, build.portable(node, base), make, task, teacher, grounds)


def _priceable(setting: _Setting) -> _Setting:
    """See, before anything is trained, that the latency table has every layer of the network, if there is a table."""
    options = setting.config["measure"]
    if options["table"] and options["onnx"]:
        dense = measure.export_dense(setting.make(), setting.data.example, setting.folder / measure.DENSE)
        priced.table_of(options).check(pieces.read(dense))
    return setting


def _fit(setting: _Setting, rungs: Rungs, started: float, report: Report | None) -> _Fitted:
    def judge(compact: Compact, history: list[dict[str, float]]) -> Result | None:
        metrics = measure.evaluate(compact.model, setting.data.val_dataloader(), setting.task, "val")
        if not ranks.is_first():
            return ranks.shared(None)
        cost = measure.count(compact, setting.make(), setting.data.example, setting.node)
        result = _record(setting, history, metrics, status="paused", cost=cost, wall_seconds=time.time() - started)
        if setting.config["measure"]["onnx"]:
            result.files["onnx"] = f"rung-{len(history)}.onnx"
        if rungs.ask(result, len(history)):
            return ranks.shared(None)
        if "onnx" in result.files:
            write_onnx(compact, sample(setting.data), setting.folder / result.files["onnx"])
        return ranks.shared(result)

    try:
        compact, history = fit(_job(setting, rungs, judge, report))
    except PausedError:
        ranks.part()
        raise
    ranks.part()
    return _Fitted(setting, compact, history)


def _finish(fitted: _Fitted) -> Result:
    setting, compact = fitted.setting, fitted.compact
    config, data = setting.config, setting.data
    _check_finite(compact.model)
    options = config["measure"]
    paths = {key: Path(options[key]) if options[key] else None for key in ("reference", "table")}
    timing = measure.Timing(**{**options, **paths})
    files, checks, cost, layers = measure.measure(
        compact, setting.make, sample(data), setting.folder, architecture=setting.node, timing=timing
    )
    if isinstance(data, LabelledData):
        files |= data.save(setting.folder)
    splits = {"val": data.val_dataloader()} | ({"test": data.test_dataloader()} if config["evaluate_test"] else {})
    metrics: dict[str, float] = {}
    for split, batches in splits.items():
        metrics |= measure.evaluate(compact.model, batches, setting.task, split)
    metrics |= figures(config, compact.model, splits)
    return _record(setting, fitted.history, metrics, cost=cost, layers=layers, files=files, checks=checks)


def _check_finite(model: nn.Module) -> None:
    # A buffer may be infinite from the start, as the mask of an attention.
    buffers = [name for name, tensor in model.named_buffers() if tensor.isnan().any()]
    wrong = [*(name for name, tensor in model.named_parameters() if not tensor.isfinite().all()), *buffers]
    if wrong:
        raise ValueError(
            f"training diverged: {wrong[0]} and {len(wrong) - 1} more tensors hold values that are not finite; lower "
            "optimizer.lr, or the weight of what is trained beside the labels"
        )


def _record(setting: _Setting, history: list[dict[str, float]], metrics: dict[str, float], **found: Any) -> Result:
    config = setting.config
    last = {key: value for key, value in (history[-1] if history else {}).items() if key.startswith("train/")}
    return Result(
        name=config["name"],
        metrics={**last, **metrics},
        config=config,
        seed=config["seed"],
        provenance={**provenance(), **_teacher_hash(setting), **_data_hashes(setting)},
        train_flops=_flops(setting, len(history)),
        history=history,
        study=config["wandb"]["group"],
        **found,
    )


def _flops(setting: _Setting, epochs: int) -> float:
    """What so many epochs of training took: six operations for each multiply-accumulate of a sample."""
    own, total = Ground(setting.make, setting.data, setting.task, setting.data.example), 0.0
    for phase, ground in zip(build.phases(setting.config), setting.grounds, strict=True):
        here, done = ground or own, min(epochs, phase["epochs"])
        total += 6.0 * sum(macs(here.build(), here.example).values()) * here.data.num_train * done
        epochs -= done
    return total


def _data_hashes(setting: _Setting) -> dict[str, dict[str, str]]:
    """What each phase trained on, by its name, where one has data of its own."""
    if not any(setting.grounds):
        return {}
    pairs = zip(build.phases(setting.config), setting.grounds, strict=True)
    modules = {phase["name"]: ground.data if ground else setting.data for phase, ground in pairs}
    return {"data": {name: data_digest(data) for name, data in modules.items() if isinstance(data, LabelledData)}}


def _teacher_hash(setting: _Setting) -> dict[str, str]:
    # Loaded once more: of a run that goes on, the phase with the teacher may have been trained before.
    return {"teacher": fingerprint(setting.teacher())} if build.is_taught(setting.config) else {}


def _phases(setting: _Setting) -> list[Phase]:
    config, made = setting.config, []
    outputs = partial(teacher_outputs, config, setting.data)
    for phase, ground in zip(build.phases(config), setting.grounds, strict=True):
        module = ground.data if ground else setting.data
        methods = partial(build.methods, config, phase["methods"], setting.teacher, outputs, module=module)
        made.append(Phase(methods, phase["epochs"], phase["keep_optimizer"], ground, phase["name"]))
    return made


def _job(setting: _Setting, rungs: Rungs, judge: Judge, report: Report | None) -> Job:
    config, data = setting.config, setting.data
    optimizer, scheduler = build.factories(config)
    speed = config["speed"]
    return Job(
        build=setting.make,
        data=data,
        task=setting.task,
        phases=_phases(setting),
        optimizer=optimizer,
        scheduler=scheduler,
        example=data.example,
        folder=setting.folder,
        trainer={"precision": device.precision(speed["precision"]), **config["trainer"]},
        speed={
            "compile_model": device.compiled(speed["compile"]),
            "channels_last": device.channels_last(speed["channels_last"], setting.make()),
        },
        checkpoint_every=config["checkpoint_every"],
        validate_every=config["validate_every"],
        report=report,
        rungs=rungs,
        judge=judge,
    )


def sample(data: Any) -> Tensor:
    """Real inputs to check and time with: the first validation batch, on the CPU."""
    inputs: Tensor = next(iter(data.val_dataloader()))[0].cpu().contiguous()
    return inputs


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def announce(config: Config, folder: Path) -> str:
    """The sentence that says where W&B logs go and how to upload them."""
    return wandb.choose_mode(Path(config["wandb"]["folder"] or folder), config["wandb"]["mode"]).sentence
