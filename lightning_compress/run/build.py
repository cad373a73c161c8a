"""From a configuration to objects."""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Method
from lightning_compress.core.task import Task, by_kind
from lightning_compress.distill.teacher import Teacher
from lightning_compress.models.load import load_weights
from lightning_compress.run import config as conf
from lightning_compress.run import device, priced
from lightning_compress.run.targets import Config, ConfigError, signature


def data(config: Config) -> Any:
    """The data module; its `seed` is the run's unless it has one of its own."""
    return conf.build(config["data"], config["allow"], seed=config["seed"])


def facts(module: Any) -> dict[str, Any]:
    """What a model must know of the data: `num_classes` (by head if it has heads) and the shape of an input.

    `in_channels` and `image_size` are of a picture, `num_features` of a frame of sound: bins, or a picture's width. Of
    token ids, int64, it is `vocab_size`, `padding_id` and `max_length` beside `num_classes`.
    """
    example = module.example
    if example.dtype == torch.int64:
        own = {"vocab_size": module.vocab_size, "padding_id": module.padding_id, "max_length": example.shape[1]}
    else:
        own = {"in_channels": example.shape[1], "image_size": example.shape[-1], "num_features": example.shape[-1]}
    return {"num_classes": module.num_classes, **own}


def architecture(node: Config, module: Any, allow: Sequence[str] = ()) -> Config:
    """The model's node with what the data decides filled in: enough to build it anywhere.

    Raises:
        ConfigError: the data has heads, and the model says that it has one output.
    """
    known = signature(node, allow)
    filled = {key: value for key, value in facts(module).items() if key in known and node.get(key) is None}
    heads = filled.get("num_classes")
    if isinstance(heads, Mapping) and known["num_classes"].annotation is int:
        raise ConfigError(
            f"model {node['_target_']} has one output, and the data has the heads {', '.join(heads)}: "
            "choose model=shared_trunk or model=side_by_side, or leave data.heads away"
        )
    return {**node, **filled}


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


@torch.no_grad()
def check_fit(model: nn.Module, module: Any) -> None:
    """See that the model takes the data's inputs and gives logits [batch, classes], by head if the data has heads.

    Where each position of a sample has a target, [batch, ...], the logits are [batch, classes, ...].

    Raises:
        ConfigError: it does not.
    """
    example = module.example
    name, shape = type(model).__name__, list(example.shape[1:])
    try:
        outputs = model.eval()(example)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ConfigError(
            f"model {name} cannot take inputs of shape {shape}: {' '.join(str(error).split())}"
        ) from error
    classes = module.num_classes
    several = isinstance(classes, Mapping)
    rest = (classes, *getattr(module, "target_shape", ()))
    expected = {head: (len(example), own) for head, own in classes.items()} if several else (len(example), *rest)
    got = {head: _shape(own) for head, own in outputs.items()} if isinstance(outputs, Mapping) else _shape(outputs)
    if got != expected:
        raise ConfigError(f"model {name} must give logits of shape {expected} for {len(example)} inputs; got {got}")


def _shape(outputs: Any) -> tuple[int, ...] | str:
    return tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__


def task(config: Config, module: Any) -> Task:
    """What the data is for: classification over its classes, those of each head where it has heads, or next tokens."""
    kind = getattr(module, "task_kind", "classification")
    return by_kind(kind, module.num_classes, config["label_smoothing"])


def methods(
    config: Config,
    names: Sequence[str] | None,
    teacher: Callable[[], nn.Module],
    outputs: Callable[[nn.Module], list[torch.Tensor]] | None = None,
    *,
    module: Any = None,
) -> list[Method]:
    """The methods called `names` (all that are on, if None), in the order of the configuration.

    They have one teacher; if its outputs are kept, `outputs` may give them for all of the training data. Peers are
    networks for the data `module`, made anew in each phase; what else learns from labels beside the student has the
    run's own loss.
    """
    one = functools.cache(lambda: _teacher(config, teacher(), outputs))
    made = []
    for name, node in config["methods"].items():
        if node is not None and (names is None or name in names):
            offered: dict[str, Any] = {}
            if "teacher" in signature(node, config["allow"]):
                offered["teacher"] = one()
            if "task_loss" in signature(node, config["allow"]):
                offered["task_loss"] = task(config, module).loss
            if "peers" in signature(node, config["allow"]):
                offered["peers"] = _peers(node.get("peers") or {"": config["model"]}, config, module)
                node = {**node, "peers": None}
            if node.get("latency") is not None and config["measure"]["table"]:
                offered["price"] = priced.ByChannels(config["measure"]["table"])
            made.append(conf.build(node, config["allow"], **offered))
    return made


def _teacher(config: Config, network: nn.Module, outputs: Callable[[nn.Module], list[torch.Tensor]] | None) -> Teacher:
    wanted = config["teacher"]
    return Teacher(
        network,
        cache=wanted["cache"],
        outputs=outputs(network) if wanted["cache"] and outputs is not None else (),
        compile=device.compiled(config["speed"]["compile"]),
        mode=wanted["mode"],
        bf16=wanted["bf16"],
    )


def _peers(wanted: Config, config: Config, module: Any) -> list[nn.Module]:
    """The networks of `wanted`, each from a seed of its own, which is not the run's: two that are alike must differ."""
    completed = [architecture(node, module, config["allow"]) for node in wanted.values()]
    made = [
        model(node, seed=config["seed"] + number, allow=config["allow"])
        for number, node in enumerate(completed, start=1)
    ]
    for peer in made:
        check_fit(peer, module)
    return made


def phases(config: Config) -> list[Config]:
    """The phases of a run: those of the configuration, or one with every method that is on."""
    default = {"methods": None, "epochs": config["epochs"], "keep_optimizer": False}
    return [{**default, **phase} for phase in config["phases"] or [{}]]


def is_taught(config: Config) -> bool:
    """Whether a method of the run learns from the teacher."""
    chosen = [config["methods"] if phase["methods"] is None else phase["methods"] for phase in phases(config)]
    nodes = [config["methods"][name] for names in chosen for name in names]
    return any("teacher" in signature(node, config["allow"]) for node in nodes if node is not None)


def rehearse(config: Config, make: Callable[[], nn.Module], module: Any, stand_in: Callable[[], nn.Module]) -> None:
    """Attach the methods of every phase to a fresh model, so that what cannot work is known before anything is trained.

    `stand_in` gives a network in the teacher's place. Raises what methods and `core/compressor.py` raise.
    """
    if isinstance(module.num_classes, Mapping) and config["teacher"]["cache"]:
        raise ConfigError("of a teacher one output is kept, and data.heads asks for several: choose distill=kl")
    for phase in phases(config):
        Compressor(methods(config, phase["methods"], stand_in, module=module)).attach(make(), module.example)


def factories(config: Config) -> tuple[Any, Any]:
    """The optimizer and the scheduler factory."""
    optimizer = conf.build(config["optimizer"], config["allow"])
    scheduler = conf.build(config["scheduler"], config["allow"]) if config["scheduler"] else None
    return optimizer, scheduler


def builder(node: Config, config: Config) -> Callable[[], nn.Module]:
    """A function that makes the base network afresh, always the same."""
    return partial(model, node, seed=config["seed"], weights=config["weights"], allow=config["allow"])
