"""The teacher of a run: loaded, or trained first, by assistants between it and the student if there are any."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.run import build, identity, measure
from lightning_compress.run.result import FILE
from lightning_compress.run.targets import Config, ConfigError

_DECIDING = ("model", "data", "epochs", "optimizer", "scheduler", "label_smoothing")
#: Methods that learn from a teacher, as an assistant does too.
_TEACHING = ("distill", "adversarial")


def load_teacher(config: Config, data: Any, folder: Path, train: Callable[[Config, Path], Any]) -> nn.Module:
    """The trained teacher: from `teacher.weights`, or trained once and kept by the hash of all that decides it.

    Each network of `teacher.assistants` is trained likewise, taught by the one before it as the run's student is by the
    last (Mirzadeh et al. 2020, arXiv 1902.03393; with networks like the student, born-again ones, arXiv 1805.04770).

    Raises:
        ConfigError: distillation is on and no teacher is named, or it is to be trained for no epochs.
    """
    stand_in(config)
    wanted = config["teacher"]
    node, weights = wanted["model"], wanted["weights"] or _trained(config, folder, train)
    for assistant in wanted["assistants"].values():
        weights = _trained(config, folder, train, assistant, taught_by={"model": node, "weights": weights})
        node = assistant
    complete = build.architecture(node, data, config["allow"])
    return build.model(complete, seed=config["seed"], weights=weights, allow=config["allow"])


def stand_in(config: Config) -> nn.Module:
    """What can stand in the teacher's place before it is needed.

    Raises:
        ConfigError: no teacher is named.
    """
    if config["teacher"]["model"] is None:
        raise ConfigError(
            "distillation needs a teacher: choose its network with model@teacher.model=resnet56, "
            "and give teacher.weights=FILE if it is trained already"
        )
    return nn.Identity()


def _trained(
    config: Config,
    folder: Path,
    train: Callable[[Config, Path], Any],
    network: Config | None = None,
    *,
    taught_by: Config | None = None,
) -> str:
    """The weights of the teacher, or of the assistant `network`."""
    wanted, wandb = config["teacher"], config["wandb"]
    if wanted["epochs"] == 0:
        raise ConfigError("teacher.epochs=0 trains no teacher: give teacher.weights=FILE, or some epochs")
    name = "assistant" if taught_by else "teacher"
    methods = {method: config["methods"][method] for method in _TEACHING if taught_by and config["methods"][method]}
    own = {
        **config,
        "name": name,
        "model": network or wanted["model"],
        "methods": methods,
        "phases": [],
        "weights": None,
        "epochs": wanted["epochs"],
        "seed": 0,
        "evaluate_test": False,
        "measure": {**config["measure"], "latency": False, "onnx": False},
        "wandb": {**wandb, "job_type": name, "name": name, "id": None, "folder": wandb["folder"] or str(folder)},
        "teacher": {**wanted, "folder": None, "outputs": None, "assistants": {}, **(taught_by or {})},
    }
    deciding = {key: identity.deciding(key, own[key]) for key in _DECIDING}
    if taught_by:
        taught = hashlib.sha256(Path(taught_by["weights"]).read_bytes()).hexdigest()
        deciding |= {"methods": own["methods"], "teacher": taught}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
    place = (Path(wanted["folder"]) if wanted["folder"] else folder) / f"{name}-{digest}"
    if not (place / FILE).exists():
        train(own, place)
    return str(place / measure.WEIGHTS)
