"""What the plain settings of a run may be: every key known, every value of the right form."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl

from lightning_compress.export import chooser
from lightning_compress.run.targets import Config, ConfigError, unknown

#: Arguments of the trainer that other settings decide.
_DECIDED = {
    "max_epochs": "epochs",
    "check_val_every_n_epoch": "validate_every",
    "precision": "speed.precision",
    "default_root_dir": "--out",
    **dict.fromkeys(("callbacks", "logger", "num_sanity_val_steps"), ""),
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), ""),
}
#: Names in here are the user's own.
_FREE = ("methods", "assistants", "members", "trainer", "figures")
_MISSING = "nothing"
_PHASE = ("methods", "epochs", "keep_optimizer", "data", "name")


def trainer_arguments() -> list[str]:
    """Arguments of `pl.Trainer` that a configuration may set.

    >>> "strategy" in trainer_arguments(), "max_epochs" in trainer_arguments()
    (True, False)
    """
    return [name for name in inspect.signature(pl.Trainer).parameters if name not in _DECIDED]


def check(config: Config, defaults: Config) -> None:
    """Hold the settings of a resolved configuration against those of `defaults`, and their values against their forms.

    Raises:
        ConfigError: a key that nothing reads (the nearest right one is named), or a value of a wrong form.
    """
    _check_keys(config, defaults, "")
    _check_finite(config, "")
    for key, (expected, right) in _FORMS.items():
        value = _at(config, key)
        if not right(value):
            raise ConfigError(f"{key} must be {expected}; got {value if value is _MISSING else repr(value)}")
    if config["measure"]["latency"] and not config["measure"]["onnx"]:
        raise ConfigError("measure.latency times the ONNX file: set measure.onnx=true, or measure.latency=false too")
    check_runtimes(config["measure"])
    for key in config["trainer"]:
        if key in _DECIDED:
            instead = f": set {_DECIDED[key]} instead" if _DECIDED[key] else ""
            raise ConfigError(f"trainer.{key} is decided by the run{instead}")
        if key not in trainer_arguments():
            raise unknown(key, trainer_arguments(), where="the arguments of pytorch_lightning.Trainer")
    for number, phase in enumerate(config["phases"]):
        _check_phase(phase, f"phases[{number}]", config["methods"])
    _check_grounds(config["phases"], config["weights"])


def check_runtimes(measure: Config) -> None:
    """See that the runtimes to time on exist, run ONNX files, and are on this machine if there will be such files.

    Raises:
        ConfigError: they do not; names the nearest, or what to install.
    """
    names = measure["runtimes"]
    try:
        found = chooser.here(names) if measure["onnx"] else chooser.named(names)
    except ValueError as error:
        raise ConfigError(f"measure.runtimes: {error}") from error
    for one in found:
        if one.needs == "pytorch":
            fit = dict.fromkeys(other.family for other in chooser.RUNTIMES if other.needs != "pytorch")
            raise ConfigError(
                f"measure.runtimes: {one.family} runs PyTorch models, and a run times ONNX files; name some of "
                f"{', '.join(fit)}"
            )


def _check_keys(config: Config, defaults: Config, prefix: str) -> None:
    for key, value in config.items():
        if key not in defaults:
            where = f"{prefix.rstrip('.')} of the configuration" if prefix else "the configuration"
            raise unknown(f"{prefix}{key}", [f"{prefix}{known}" for known in defaults], where=where)
        below = defaults[key]
        if isinstance(value, dict) and isinstance(below, dict) and "_target_" not in value and key not in _FREE:
            _check_keys(value, below, f"{prefix}{key}.")


def _check_finite(value: Any, path: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path} must be a finite number; got {value}")
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(inner, f"{path}.{key}".lstrip("."))


def _check_phase(phase: Any, where: str, methods: Config) -> None:
    if not isinstance(phase, dict):
        raise ConfigError(f"{where} must be like {{methods: [prune], epochs: 10}}; got {phase!r}")
    for key in phase:
        if key not in _PHASE:
            raise unknown(key, _PHASE, where=where)
    if not _whole(phase.get("epochs", 1)):
        raise ConfigError(f"{where}: epochs must be a count from 0 up; got {phase['epochs']!r}")
    _check_keep(phase.get("keep_optimizer", False), where)
    names = phase.get("methods")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{where}: methods must be a list of names; got {names!r}")
    on = [name for name, node in methods.items() if node is not None]
    for name in names or ():
        if name not in on:
            raise unknown(name, on, where="the methods that are on")


def _check_grounds(phases: Sequence[Config], weights: str | None) -> None:
    """Data of phases: the last one, which decides, has the run's, and an optimizer is kept on the same data only."""
    names = [phase.get("name", f"phase{number}") for number, phase in enumerate(phases)]
    for number, phase in enumerate(phases):
        where, node, before = f"phases[{number}]", phase.get("data"), phases[number - 1].get("data")
        if not _or_null(_node)(node):
            raise ConfigError(f"{where}: data must be a mapping with a _target_, or null for data=...; got {node!r}")
        if not _word(names[number]) or "/" in names[number] or names.count(names[number]) > 1:
            raise ConfigError(f"{where}: name must be a word without a slash, and each phase's own; got {names}")
        if phase.get("keep_optimizer") and node != before:
            raise ConfigError(f"{where}: keep_optimizer goes with the data of the phase before; leave one of them away")
    if weights and any(phase.get("data") is not None for phase in phases):
        raise ConfigError(
            "weights are start weights for data=...: leave them away, or the phases with data of their own"
        )
    if phases and phases[-1].get("data") is not None:
        raise ConfigError(
            f"phases[{len(phases) - 1}]: the last phase trains on data=..., which validates and tests: choose its data "
            "there, and give earlier phases theirs"
        )


def _check_keep(keep: Any, where: str) -> None:
    if not _switch(keep) or (keep and where == "phases[0]"):
        raise ConfigError(
            f"{where}: keep_optimizer must be true or false, and the first phase has none to keep; got {keep!r}"
        )


def _at(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _count(value: object) -> bool:
    return _whole(value) and value != 0


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _word(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value is not _MISSING


def _node(value: object) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _or_null(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or right(value)


def _each(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(right(item) for item in value)


def _switch(value: object) -> bool:
    return isinstance(value, bool)


def _seed(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _all_nodes(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and _or_null(_node)(v) for key, v in value.items())


def _member(value: object) -> bool:
    if not isinstance(value, dict) or not {"model"} <= value.keys() <= {"model", "weights", "share"}:
        return False
    share = value.get("share", 1)
    positive = isinstance(share, int | float) and not isinstance(share, bool) and share > 0
    return _node(value["model"]) and _or_null(_word)(value.get("weights")) and positive


def _members(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and _member(v) for key, v in value.items())


_Forms = dict[str, tuple[str, Callable[[Any], bool]]]


def _same(keys: Sequence[str], expected: str, right: Callable[[Any], bool]) -> _Forms:
    return {key: (expected, right) for key in keys}


_FORMS: _Forms = {
    **_same(("data", "model", "optimizer"), "a mapping with a _target_: choose it by its group", _node),
    **_same(("scheduler", "teacher.model"), "a mapping with a _target_, or null", _or_null(_node)),
    **_same(
        ("methods", "teacher.assistants", "figures"), "names with mappings that have a _target_, or null", _all_nodes
    ),
    "teacher.members": ("names with mappings of a model, and maybe weights (a file) and a share above 0", _members),
    "teacher.mean": (
        "probabilities or logits, or null for probabilities",
        _or_null(lambda value: value in ("probabilities", "logits")),
    ),
    "teacher.mode": ("eval or train_bn", lambda value: value in ("eval", "train_bn")),
    **_same(("epochs", "teacher.epochs"), "a count from 0 up", _whole),
    **_same(("checkpoint_every", "validate_every"), "a count from 1 up", _count),
    **_same(("measure.batch_size", "measure.threads", "measure.rounds"), "a count from 1 up", _count),
    "speed.threads": ("a count from 1 up, or null", _or_null(_count)),
    "seed": ("a whole number from 0 up to 2^32 - 1", _seed),
    "label_smoothing": ("a number in [0, 1)", _share),
    **_same(
        ("evaluate_test", "teacher.bf16", "teacher.cache", "measure.latency", "measure.onnx"), "true or false", _switch
    ),
    **_same(("speed.channels_last", "speed.compile"), "true, false or null", _or_null(_switch)),
    **_same(("name", "wandb.mode", "wandb.project", "wandb.job_type", "wandb.name"), "a word", _word),
    **_same(
        ("weights", "teacher.weights", "measure.reference", "measure.table"),
        "the path of a file, or null",
        _or_null(_word),
    ),
    **_same(("teacher.folder", "teacher.outputs", "wandb.folder"), "the path of a folder, or null", _or_null(_word)),
    **_same(("wandb.group", "wandb.id"), "a word, or null", _or_null(_word)),
    "speed.precision": ("a precision that Lightning knows, as 32-true or bf16-mixed, or null", _or_null(_word)),
    **_same(("allow", "wandb.tags", "measure.runtimes"), "a list of words", _each(_word)),
    "trainer": ("a mapping of arguments of pytorch_lightning.Trainer", lambda value: isinstance(value, dict)),
    "phases": ("a list of phases", _each(lambda value: True)),
}
