"""From a configuration to objects."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_compress.core.method import Method
from lightning_compress.core.task import Task, classification
from lightning_compress.models.load import load_weights
from lightning_compress.run import config as conf
from lightning_compress.run.config import Config, ConfigError


def data(config: Config) -> Any:
    """The data module; its `seed` is the run's unless it has one of its own."""
    return conf.build(config["data"], config["allow"], seed=config["seed"])


def facts(module: Any) -> dict[str, Any]:
    """What a model must know of the data: `num_classes`, `in_channels` and `image_size`."""
    shape = module.example.shape
    return {"num_classes": module.num_classes, "in_channels": shape[1], "image_size": shape[-1]}


def architecture(node: Config, module: Any, allow: Sequence[str] = ()) -> Config:
    """The model's node with what the data decides filled in: enough to build it anywhere."""
    known = conf.signature(node, allow)
    return {**node, **{key: value for key, value in facts(module).items() if key in known and node.get(key) is None}}


def model(node: Config, *, seed: int, weights: str | None = None, allow: Sequence[str] = ()) -> nn.Module:
    """The network that a complete node describes, initialised from `seed`, with start weights if there are any."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = conf.build(node, allow)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model: {node['_target_']} gave a {type(made).__name__}, expected a torch.nn.Module")
    if weights is not None:
        load_weights(made, weights)
    return made


def task(config: Config, module: Any) -> Task:
    """Classification over the data's classes."""
    return classification(facts(module)["num_classes"], config["label_smoothing"])


def methods(config: Config, names: Sequence[str] | None, teacher: Callable[[], nn.Module]) -> list[Method]:
    """The methods called `names` (all that are on, if None), in the order of the configuration."""
    on = {name: node for name, node in config["methods"].items() if node is not None}
    missing = [name for name in names or () if name not in on]
    if missing:
        raise ConfigError(f"phases name a method {missing[0]!r} that is off; on are: {', '.join(on) or 'none'}")
    made = []
    for name, node in on.items():
        if names is None or name in names:
            offered = {"teacher": teacher()} if "teacher" in conf.signature(node, config["allow"]) else {}
            made.append(conf.build(node, config["allow"], **offered))
    return made


def factories(config: Config) -> tuple[Any, Any]:
    """The optimizer and the scheduler factory."""
    optimizer = conf.build(config["optimizer"], config["allow"])
    scheduler = conf.build(config["scheduler"], config["allow"]) if config["scheduler"] else None
    return optimizer, scheduler


def builder(node: Config, config: Config) -> Callable[[], nn.Module]:
    """A function that makes the base network afresh, always the same."""
    return partial(model, node, seed=config["seed"], weights=config["weights"], allow=config["allow"])
