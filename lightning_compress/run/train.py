"""One run: a configuration in, a Result out."""

import hashlib
import json
import logging
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
from lightning_compress.run import build, device, measure, ranks
from lightning_compress.run.fit import Job, Phase, fit
from lightning_compress.run.result import FILE, Result, write_json
from lightning_compress.run.targets import Config, ConfigError
from lightning_compress.tracking import wandb
from lightning_compress.tracking.provenance import provenance

_LOG = logging.getLogger(__name__)
CONFIG = "config.json"


def train(config: Config, folder: Path) -> Result:
    """Train, finalize, export, check, measure and record one run in `folder`.

    A finished folder is returned as it is, an unfinished one is resumed from its last checkpoint. Of several processes
    only the first one measures, writes and logs; the others wait and return what it has saved.

    Raises:
        ConfigError: `folder` holds a run of another configuration.
        ValueError: anything else that is wrong with the configuration or the data.
    """
    if _same(config, folder) and (folder / FILE).exists():
        return Result.load(folder)
    if not ranks.is_first():
        with _threads(config["speed"]["threads"]):
            _fit(config, folder, None)
        ranks.wait_for(folder / FILE)
        return Result.load(folder)
    _claim(config, folder)
    started = time.time()
    with _threads(config["speed"]["threads"]), _tracked(config, folder) as log:
        result = _run(config, folder, log)
        result.wall_seconds = time.time() - started
        result.save(folder)
        log.summary({**result.metrics, **{f"cost/{key}": value for key, value in result.cost.items()}})
        _log_layers(log, result)
    return result


@final
@dataclass(frozen=True)
class _Fitted:
    """What training leaves to be measured."""

    data: Any
    node: Config
    make: Callable[[], nn.Module]
    task: Task
    compact: Compact
    history: list[dict[str, float]]


def _fit(config: Config, folder: Path, log: wandb.Run | None) -> _Fitted:
    pl.seed_everything(config["seed"], verbose=False)
    data = build.data(config)
    node = build.architecture(config["model"], data, config["allow"])
    make = build.builder(node, config)
    task = build.task(config, data)
    build.check_fit(make(), data)
    build.rehearse(config, make, data, partial(_stand_in, config))
    compact, history = fit(_job(config, folder, data, task, make, log))
    ranks.part()
    return _Fitted(data, node, make, task, compact, history)


def _run(config: Config, folder: Path, log: wandb.Run) -> Result:
    fitted = _fit(config, folder, log)
    data, make, history = fitted.data, fitted.make, fitted.history
    options = config["measure"]
    reference = Path(options["reference"]) if options["reference"] else None
    timing = measure.Timing(reference, options["batch_size"], options["threads"], options["rounds"], options["latency"])
    files, checks, cost, layers = measure.measure(
        fitted.compact, make, sample(data), folder, architecture=fitted.node, timing=timing
    )
    metrics = measure.evaluate(fitted.compact.model, data.val_dataloader(), fitted.task, "val")
    if config["evaluate_test"]:
        metrics |= measure.evaluate(fitted.compact.model, data.test_dataloader(), fitted.task, "test")
    last = {key: value for key, value in (history[-1] if history else {}).items() if key.startswith("train/")}
    dense_macs = sum(macs(make(), data.example).values())
    return Result(
        name=config["name"],
        metrics={**last, **metrics},
        cost=cost,
        layers=layers,
        config=config,
        seed=config["seed"],
        provenance=provenance(),
        train_flops=6.0 * dense_macs * data.num_train * len(history),
        files=files,
        checks=checks,
        history=history,
        study=config["wandb"]["group"],
    )


def _job(
    config: Config,
    folder: Path,
    data: Any,
    task: Task,
    make: Callable[[], nn.Module],
    log: wandb.Run | None,
) -> Job:
    optimizer, scheduler = build.factories(config)
    teacher = partial(load_teacher, config, data, folder)
    phases = [
        Phase(partial(build.methods, config, phase["methods"], teacher), phase["epochs"])
        for phase in build.phases(config)
    ]
    speed = config["speed"]
    return Job(
        build=make,
        data=data,
        task=task,
        phases=phases,
        optimizer=optimizer,
        scheduler=scheduler,
        example=data.example,
        folder=folder,
        trainer={"precision": device.precision(speed["precision"]), **config["trainer"]},
        speed={
            "compile_model": device.compiled(speed["compile"]),
            "channels_last": device.channels_last(speed["channels_last"], make()),
        },
        checkpoint_every=config["checkpoint_every"],
        validate_every=config["validate_every"],
        report=None if log is None else partial(_report, config["name"], log),
    )


def sample(data: Any) -> Tensor:
    """Real inputs to check and time with: the first validation batch, on the CPU."""
    inputs: Tensor = next(iter(data.val_dataloader()))[0].cpu().contiguous()
    return inputs


def load_teacher(config: Config, data: Any, folder: Path) -> nn.Module:
    """The trained teacher: from `teacher.weights`, or trained once and kept by the hash of all that decides it.

    Raises:
        ConfigError: distillation is on and no teacher is named.
    """
    wanted = config["teacher"]
    _stand_in(config)
    node = build.architecture(wanted["model"], data, config["allow"])
    weights = wanted["weights"] or str(_trained_teacher(config, folder) / measure.WEIGHTS)
    return build.model(node, seed=config["seed"], weights=weights, allow=config["allow"])


def _stand_in(config: Config) -> nn.Module:
    if config["teacher"]["model"] is None:
        raise ConfigError(
            "distillation needs a teacher: choose its network with model@teacher.model=resnet56, "
            "and give teacher.weights=FILE if it is trained already"
        )
    return nn.Identity()


def _trained_teacher(config: Config, folder: Path) -> Path:
    own = {
        **config,
        "name": "teacher",
        "model": config["teacher"]["model"],
        "methods": {},
        "phases": [],
        "weights": None,
        "epochs": config["teacher"]["epochs"],
        "seed": 0,
        "evaluate_test": False,
        "measure": {**config["measure"], "latency": False},
        "wandb": {
            **config["wandb"],
            "job_type": "teacher",
            "name": "teacher",
            "id": None,
            "folder": config["wandb"]["folder"] or str(folder),
        },
        "teacher": {**config["teacher"], "folder": None},
    }
    deciding = {key: own[key] for key in ("model", "data", "epochs", "optimizer", "scheduler", "label_smoothing")}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
    home = Path(config["teacher"]["folder"]) if config["teacher"]["folder"] else folder
    place = home / f"teacher-{digest}"
    if not (place / FILE).exists():
        train(own, place)
    return place


def _same(config: Config, folder: Path) -> bool:
    """Whether `folder` was claimed by a run of this configuration; where it logs does not matter."""
    path = folder / CONFIG
    if not path.exists():
        return False
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); move the folder away to start over") from error
    # Numbers of a finished run are not taken again; before that it does not matter how they will be.
    free = {"wandb"} if (folder / FILE).exists() else {"wandb", "measure"}
    now = json.loads(json.dumps(config))
    differing = [key for key in now if key not in free and before.get(key) != now[key]]
    if differing and ((folder / FILE).exists() or any(folder.glob("phase*"))):
        raise ConfigError(
            f"{folder} holds a run of another configuration (it differs in {', '.join(differing)}); "
            "choose another folder, or remove it"
        )
    return not differing


def _claim(config: Config, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config)
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


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


@contextmanager
def _tracked(config: Config, folder: Path) -> Iterator[wandb.Run]:
    options = config["wandb"]
    home = Path(options["folder"] or folder)
    mode = wandb.choose_mode(home, options["mode"]).name
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    labels = wandb.Labels(
        project=options["project"],
        id=options["id"] or f"{config['name']}-{digest}".replace("/", "-"),
        name=options["name"],
        group=options["group"],
        job_type=options["job_type"],
        tags=tuple(options["tags"]),
    )
    with wandb.log_run(labels, config=config, folder=home, mode=mode) as run:
        yield run


def _report(name: str, log: wandb.Run, row: dict[str, float]) -> None:
    log.log(row)
    figures = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
    _LOG.info("%s, epoch %d: %s", name, row["epoch"] + 1, figures)


def _log_layers(log: wandb.Run, result: Result) -> None:
    if result.layers:
        columns = list(result.layers[0])
        log.table(
            "layers", columns, [[str(row[c]) if c == "shape" else row[c] for c in columns] for row in result.layers]
        )
