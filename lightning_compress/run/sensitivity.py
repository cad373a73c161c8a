"""How much each layer alone can lose: pruned, in fewer bits or of low rank, the others whole (Li, arXiv 1608.08710)."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml  # type: ignore[import-untyped]
from torch import nn

from lightning_compress.core import edits, forms, reform, select
from lightning_compress.core.mask import Mask
from lightning_compress.cost.layers import Prices
from lightning_compress.prune import allocate, channels, patterns
from lightning_compress.prune.scores import magnitude
from lightning_compress.quantize.method import Quantize
from lightning_compress.run import build, measure
from lightning_compress.run.api import load
from lightning_compress.run.result import Result
from lightning_compress.run.targets import Config, ConfigError, unknown

SCHEMA = 1
FILE = "sensitivity.json"
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BITS = (8, 6, 5, 4, 3, 2)
RANKS = (0.8, 0.6, 0.4, 0.2, 0.1, 0.05)

#: A layer, what is done to it ("amount", of ranks also their "share" of the full ones), and the model with that done.
Variant = tuple[str, dict[str, Any], nn.Module]


def scan(
    config: Config, model: nn.Module, axes: Sequence[str], batches: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Validation accuracy and loss of `model` with one layer at a time changed along each of `axes`, mild to strong.

    `batches` is how many batches of the validation split are read; None: all. An axis that has nothing to change is
    left out, and `left_out` says why. The model stays as it is.

    Raises:
        ConfigError: no such axis, all are left out, or the run is not judged by accuracy.
    """
    _check(axes, batches)
    pl.seed_everything(config["seed"], verbose=False)
    data = build.data(config)
    task = build.task(config, data)
    if task.objective != "accuracy":
        raise ConfigError(f"sensitivity counts points of accuracy, and this run is judged by {task.objective}")

    def evaluated(one: nn.Module) -> dict[str, float]:
        found = measure.evaluate(one, islice(data.val_dataloader(), batches), task, "val")
        return {"accuracy": found["val/accuracy"], "loss": found["val/loss"]}

    model = model.eval()
    base = evaluated(model)
    scans: dict[str, dict[str, list[dict[str, Any]]]] = {}
    left_out = {}
    for axis in axes:
        say(f"{axis}: looking at the layers")
        found: dict[str, list[dict[str, Any]]] = {}
        try:
            for layer, change, variant in AXES[axis](copy.deepcopy(model), data.example):
                found.setdefault(layer, []).append({**change, **evaluated(variant)})
                say(f"{axis}: {layer} at {change['amount']}")
        except ValueError as error:
            left_out[axis] = str(error)
        if found:
            scans[axis] = found
        else:
            left_out.setdefault(axis, "no layer can be changed so that it saves anything")
    if not scans:
        raise ConfigError("sensitivity: " + "; ".join(f"{axis}: {why}" for axis, why in left_out.items()))
    return {
        "schema": SCHEMA,
        "name": config["name"],
        "batches": batches,
        "base": base,
        "scans": scans,
        "left_out": left_out,
    }


def _check(axes: Sequence[str], batches: int | None) -> None:
    for axis in axes:
        if axis not in AXES:
            raise unknown(axis, [*AXES], where="--scan")
    if batches is not None and batches < 1:
        raise ConfigError(f"--batches counts batches of the validation split, from 1 up; got {batches}")


def subject(words: Sequence[str], compose: Callable[[Sequence[str]], Config]) -> tuple[Config, nn.Module]:
    """The configuration and the trained model that the words of a command mean: a run's folder, or overrides.

    Raises:
        ConfigError: overrides without weights.
        ValueError: the folder holds no finished run, or its packed file is damaged.
    """
    if len(words) == 1 and Path(words[0]).is_dir():
        folder = Path(words[0])
        result = Result.load(folder)
        return result.config, load(folder / result.files["packed"], allow=result.config["allow"])
    config = compose(words)
    if config["weights"] is None:
        raise ConfigError("sensitivity looks at trained weights: give weights=FILE, or the folder of a finished run")
    node = build.architecture(config["model"], build.data(config), config["allow"])
    return config, build.builder(node, config)()


def read(file: Path) -> dict[str, Any]:
    """What `scan` gave, from a file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no sensitivity scan: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or "scans" not in found:
        raise ValueError(f"{file} is no sensitivity scan of schema {SCHEMA}: write one with `... --out FOLDER`")
    return found


def allowed(found: Mapping[str, Any], drop: float) -> dict[str, dict[str, Any]]:
    """The strongest change of each layer up to which accuracy falls by at most `drop` points, by axis; None for none.

    Raises:
        ValueError: `drop` is no number of points from 0 to 100.

    >>> row = [{"amount": 0.5, "accuracy": 0.89}, {"amount": 0.9, "accuracy": 0.8}, {"amount": 0.95, "accuracy": 0.9}]
    >>> allowed({"base": {"accuracy": 0.9}, "scans": {"unstructured": {"fc": row}}}, 2)
    {'unstructured': {'fc': 0.5}}
    """
    if not 0.0 <= drop <= 100.0:
        raise ValueError(f"--drop counts points of accuracy, of 100; got {drop}")
    least = found["base"]["accuracy"] - drop / 100 - 1e-9
    return {
        axis: {layer: _last(rows, least) for layer, rows in layers.items()} for axis, layers in found["scans"].items()
    }


def lines(found: Mapping[str, Any], drop: float) -> list[str]:
    """For each axis along which a layer may change, what `override` gives for what is `allowed`, under a comment.

    Raises:
        ValueError: `drop` is no number of points from 0 to 100.
    """
    return [
        f"# {axis}: each layer alone loses at most {drop:g} points of validation accuracy\n{override(axis, amounts)}"
        for axis, amounts in allowed(found, drop).items()
        if any(amount is not None for amount in amounts.values())
    ]


def _last(rows: Sequence[Mapping[str, Any]], least: float) -> Any:
    kept = None
    for row in rows:
        if row["accuracy"] < least:
            break
        kept = row["amount"]
    return kept


def override(axis: str, amounts: Mapping[str, Any]) -> str:
    """Lines of an experiment file that ask for what each layer is allowed.

    >>> override("unstructured", {"fc1": 0.9, "fc2": None}).splitlines()[-3:]
    ['    sparsity:', '      ^fc1$: 0.9', '      ^fc2$: 0.0']
    """
    names = {select.exactly(layer): amount for layer, amount in amounts.items()}
    told: dict[str, Any]
    if axis == "bits":
        method, kind, told = "quantize", "Quantize", {"weight_bits": names, "activation_bits": None}
    elif axis == "rank":
        some = {name: rank for name, rank in names.items() if rank is not None}
        method, kind, told = "lowrank", "LowRank", {"rank": some, "select": "|".join(some)}
    else:
        method, kind, told = (
            "prune",
            "Prune",
            {"pattern": axis, "sparsity": {name: gone or 0.0 for name, gone in names.items()}},
        )
    node = {"_target_": f"lightning_compress.{method}.method.{kind}", **told}
    text: str = yaml.safe_dump({"methods": {method: node}}, sort_keys=False, width=10_000)
    return text


def _pruned(
    make: Callable[..., patterns.Pattern], choose: Callable[..., Any], model: nn.Module, example: Any
) -> Iterator[Variant]:
    pattern = make(model, example, choose(model, owner="sensitivity"))
    whole, scores = pattern.keep(), {name: magnitude(units) for name, units in pattern.view().items()}
    masks = [module for module in model.modules() if isinstance(module, Mask)]
    for name, score in scores.items():
        for sparsity in SPARSITIES:
            pattern.apply({**whole, name: allocate.top(score, allocate.num_kept(len(score), sparsity))})
            yield name, {"amount": sparsity}, model
            for mask in masks:
                mask.mask.fill_(1)


def _in_bits(model: nn.Module, example: Any) -> Iterator[Variant]:
    for name in select.weights(model, owner="sensitivity"):
        for bits in BITS:
            method = Quantize(bits, None, select=select.exactly(name))
            yield name, {"amount": bits}, method.attach(copy.deepcopy(model), example).eval()


def _of_rank(model: nn.Module, example: Any) -> Iterator[Variant]:
    layers = select.layers(model, owner="sensitivity", kinds=(nn.Linear, nn.Conv2d))
    wanted = {name: "tucker" if _has_kernel(layer) else "svd" for name, layer in layers.items()}
    wanted = {name: form for name, form in wanted.items() if name not in reform.refusals(model, wanted)}
    prices = Prices(model, example, wanted)
    for (name, form), share in product(wanted.items(), RANKS):
        weight: Any = layers[name].weight
        ranks = tuple(max(1, round(share * most)) for most in forms.full_ranks(weight.shape, form))
        if prices.saves(name, form, ranks):
            edit = edits.factor(name, form, ranks)
            changed = reform.reformed(copy.deepcopy(model), [edit], {}, owner="sensitivity").eval()
            yield name, {"amount": ranks[0] if len(ranks) == 1 else list(ranks), "share": share}, changed


def _has_kernel(layer: Any) -> bool:
    return any(size > 1 for size in getattr(layer, "kernel_size", ()))


AXES: dict[str, Callable[[nn.Module, Any], Iterator[Variant]]] = {
    "unstructured": partial(_pruned, patterns.unstructured, select.weights),
    "channel": partial(_pruned, channels.Channel, select.layers),
    "bits": _in_bits,
    "rank": _of_rank,
}
