"""The teacher of a run: loaded, or trained first, one network or several, with assistants if there are any."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import filelock
from torch import nn

from lightning_compress.distill.ensemble import Ensemble
from lightning_compress.run import build, identity, measure, ranks
from lightning_compress.run.result import FILE
from lightning_compress.run.targets import Config, ConfigError

_DECIDING = ("model", "data", "epochs", "optimizer", "scheduler", "label_smoothing")
#: Methods that learn from a teacher, as an assistant does too.
_TEACHING = ("distill", "adversarial")


def load_teacher(config: Config, data: Any, folder: Path, train: Callable[[Config, Path], Any]) -> nn.Module:
    """The trained teacher: from `teacher.weights`, or trained once and kept by the hash of all that decides it.

    With `teacher.members` it is the weighted mean of several, each loaded or trained likewise, from a seed of its own.
    Each network of `teacher.assistants` is trained too, taught by the one before it as the run's student is by the last
    (Mirzadeh et al. 2020, arXiv 1902.03393; with networks like the student, born-again ones, arXiv 1805.04770).

    Raises:
        ConfigError: distillation is on and no teacher is named, or it is to be trained for no epochs.
    """
    stand_in(config, data)
    wanted = config["teacher"]
    first = {"model": wanted["model"], "weights": wanted["weights"]}
    members: list[Config] = []
    for seed, member in enumerate(wanted["members"].values() or [first]):
        weights = member.get("weights") or _trained(config, folder, train, member["model"], seed=seed)
        members.append({**member, "weights": weights})
    for assistant in wanted["assistants"].values():
        weights = _trained(config, folder, train, assistant, taught_by=members)
        members = [{"model": assistant, "weights": weights}]
    return _built(members, config, data)


def _built(members: Sequence[Config], config: Config, data: Any) -> nn.Module:
    """The network of a single member, or several as one."""
    networks = []
    for member in members:
        complete = build.architecture(member["model"], data, config["allow"])
        weights = member.get("weights")
        networks.append(build.model(complete, seed=config["seed"], weights=weights, allow=config["allow"]))
    if len(networks) == 1:
        return networks[0]
    shares = [member.get("share", 1.0) for member in members]
    return Ensemble(networks, shares, mean=config["teacher"]["mean"] or "probabilities")


def stand_in(config: Config, data: Any) -> nn.Module:
    """The last teacher before it is trained: whether methods find in it what they look for is known then.

    Raises:
        ConfigError: no teacher is named, or both one and members, or there are assistants that nothing teaches.
    """
    wanted = config["teacher"]
    if wanted["members"] and (wanted["model"] or wanted["weights"]):
        raise ConfigError(
            "teacher.members are the teacher: leave teacher.model and teacher.weights away, or the members"
        )
    if not wanted["members"] and wanted["model"] is None:
        raise ConfigError(
            "distillation needs a teacher: choose its network with model@teacher.model=resnet56, "
            "and give teacher.weights=FILE if it is trained already"
        )
    if wanted["assistants"] and not any(config["methods"].get(method) for method in _TEACHING):
        raise ConfigError(
            "teacher.assistants are taught by distill or adversarial, and neither is on: choose distill=kl, or leave "
            "the assistants away"
        )
    members: list[Config] = list(wanted["members"].values()) or [{"model": wanted["model"]}]
    last: list[Config] = [{"model": network} for network in wanted["assistants"].values()][-1:]
    return _built([{**member, "weights": None} for member in last or members], config, data)


def _trained(
    config: Config,
    folder: Path,
    train: Callable[[Config, Path], Any],
    network: Config,
    *,
    seed: int = 0,
    taught_by: Sequence[Config] = (),
) -> str:
    """The weights of `network`: a teacher, or an assistant that is taught."""
    wanted, wandb = config["teacher"], config["wandb"]
    if wanted["epochs"] == 0:
        raise ConfigError("teacher.epochs=0 trains no teacher: give teacher.weights=FILE, or some epochs")
    name = "assistant" if taught_by else "teacher"
    methods = {method: config["methods"][method] for method in _TEACHING if taught_by and config["methods"][method]}
    own = {
        **config,
        "name": name,
        "model": network,
        "methods": methods,
        "phases": [],
        "weights": None,
        "epochs": wanted["epochs"],
        "seed": seed,
        "evaluate_test": False,
        "figures": {},
        "measure": {**config["measure"], "latency": False, "onnx": False},
        "wandb": {**wandb, "job_type": name, "name": name, "id": None, "folder": wandb["folder"] or str(folder)},
        "teacher": {**wanted, "folder": None, "outputs": None, "assistants": {}, **_taught_by(taught_by)},
    }
    deciding = {key: identity.deciding(key, own[key]) for key in _DECIDING} | ({"seed": seed} if seed else {})
    if taught_by:
        deciding |= {"methods": own["methods"], "teacher": _known_by(taught_by, wanted["mean"])}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]
    place = (Path(wanted["folder"]) if wanted["folder"] else folder) / f"{name}-{digest}"
    if not (place / FILE).exists():
        with _alone(place, shared=bool(wanted["folder"])):
            if not (place / FILE).exists():
                train(own, place)
    return str(place / measure.WEIGHTS)


def _alone(place: Path, *, shared: bool) -> AbstractContextManager[object]:
    """Hold a `shared` place for the run that comes first; another waits while that one lives, then finds it finished.

    Further ranks of a run are let in beside their first one.
    """
    if not shared or not ranks.is_first():
        return nullcontext()
    place.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(place.with_name(f".{place.name}.lock"))


def _taught_by(members: Sequence[Config]) -> Config:
    """What the configuration of a run says of teachers that are trained already, or of none.

    Without any, how the student asks its teacher says nothing: students that differ in that may share one.
    """
    if not members:
        return {"members": {}, "mean": None, "mode": "eval", "bf16": False, "cache": False}
    if len(members) == 1:
        return {"model": members[0]["model"], "weights": members[0]["weights"], "members": {}, "mean": None}
    named = {f"member{number}": member for number, member in enumerate(members)}
    return {"model": None, "weights": None, "members": named}


def _known_by(members: Sequence[Config], mean: str | None) -> Any:
    """What a teacher is known by."""
    hashes = [hashlib.sha256(Path(member["weights"]).read_bytes()).hexdigest() for member in members]
    if len(hashes) == 1:
        return hashes[0]
    return [hashes, [member.get("share", 1.0) for member in members], mean]
