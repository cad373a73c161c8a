"""In what runs differ: configurations, numbers, layers and where they come from. Pure functions that give text.

A row is a name and one cell per run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.run.identity import deciding
from lightning_compress.run.result import Result
from lightning_compress.sweep.progress import size

Row = tuple[str, list[str]]
ABSENT = "absent"
_METRICS = ("test/", "val/", "train/")
_AS_THEY_ARE = (*_METRICS, "cost/sparsity")


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key; in lists, overrides go by their key and mappings by their place.

    >>> flat({"model": {"width": 1.0}, "base": ["epochs=3"], "phases": [{"epochs": 2}], "allow": [1]})
    {'model.width': 1.0, 'base.epochs': '3', 'phases.0.epochs': 2, 'allow': [1]}
    """
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        elif all(isinstance(item, str) and "=" in item for item in value):
            value = dict(item.split("=", 1) for item in value)
    if not isinstance(value, Mapping):
        return {name: value}
    below = ((f"{name}.{key}" if name else str(key), inner) for key, inner in value.items())
    return {path: leaf for key, inner in below for path, leaf in flat(inner, key).items()}


def settings(result: Result) -> dict[str, Any]:
    """A run's configuration, flat, without where files lie, what W&B is told and what is off."""
    return flat({key: deciding(key, value) for key, value in result.config.items() if key != "wandb"})


def differing(sides: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The keys on which the `sides` do not agree.

    >>> differing([{"seed": 0, "epochs": 3}, {"seed": 1, "epochs": 3, "bits": 4}])
    [('bits', ['absent', '4']), ('seed', ['0', '1'])]
    """
    names = sorted({name for side in sides for name in side})
    rows = [(name, [text(side[name]) if name in side else ABSENT for side in sides]) for name in names]
    return [(name, cells) for name, cells in rows if len(set(cells)) > 1]


def numbers(result: Result) -> dict[str, float]:
    """All numbers of a run: metrics, costs, and what training took."""
    return {**result.numbers, "wall_seconds": result.wall_seconds, "train_flops": result.train_flops}


def side_by_side(sides: Sequence[Mapping[str, float]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each number a pair of texts per side: the number, and its difference to the first side's.

    Metrics come first, those of the test split before those of validation and training.

    >>> side_by_side([{"val/accuracy": 0.5, "cost/packed_bytes": 200}, {"cost/packed_bytes": 100}])
    [('val/accuracy', [('0.5', ''), ('', '')]), ('cost/packed_bytes', [('200 B', ''), ('100 B', '-50.0 %')])]
    """
    first, *others = sides
    names = dict.fromkeys(name for side in sides for name in side)
    ordered = [name for split in _METRICS for name in sorted(names) if name.startswith(split)]
    rows = []
    for name in dict.fromkeys((*ordered, *names)):
        gaps = ["", *(gap(name, first.get(name), side.get(name)) for side in others)]
        rows.append((name, [(number(name, side.get(name)), text) for side, text in zip(sides, gaps, strict=True)]))
    return rows


def gap(name: str, first: float | None, now: float | None) -> str:
    """The difference of a number to the first one: as it is for metrics and sparsity, else in percent.

    >>> gap("val/accuracy", 0.9, 0.925), gap("cost/packed_bytes", 200, 100), gap("cost/params", 7, 7)
    ('+0.025', '-50.0 %', '=')
    """
    if first is None or now is None:
        return ""
    if first == now:
        return "="
    if first == 0 or name.startswith(_AS_THEY_ARE):
        return f"{now - first:+.3g}"
    return f"{100 * (now / first - 1):+,.1f} %"


def number(name: str, value: float | None) -> str:
    """A number as people read it; bytes by their name, counts with commas.

    >>> number("cost/params", 24058.0), number("val/accuracy", 0.97222222), number("cost/packed_bytes", 4312)
    ('24,058', '0.9722', '4.31 kB')
    """
    if value is None:
        return ""
    if name.endswith("bytes"):
        return size(value)
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}"


def layers(results: Sequence[Result]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """For each layer that a run has: bits of weights and activations, sparsity and bytes in each of the runs."""
    tables = [{layer["name"]: layer for layer in result.layers} for result in results]
    names = dict.fromkeys(name for table in tables for name in table)
    return [(name, [_layer(table.get(name)) for table in tables]) for name in names]


def _layer(layer: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if layer is None:
        return "", "", ""
    bits = f"{text(layer.get('weight_bits'))} / {text(layer.get('activation_bits'))}"
    return bits, f"{layer.get('sparsity', 0.0):.1%}", size(layer.get("bytes", 0))


def origin(result: Result) -> dict[str, str]:
    """Where a run's numbers come from, in a few words."""
    known = result.provenance
    changes = {True: " with changes", False: "", None: ""}[known.get("dirty")]
    return {
        "run": result.name,
        "seed": str(result.seed),
        "status": result.status + (f": {result.error}" if result.error else ""),
        "commit": f"{known['commit'][:12]}{changes}" if known.get("commit") else "none",
        "device": text(known.get("device")),
        "recorded": text(known.get("time")),
    }


def surroundings(result: Result) -> dict[str, Any]:
    """What may explain a gap and is no setting: versions, the platform, and what costs were measured with."""
    shown = ("commit", "dirty", "device", "time", "wandb")
    measured = {f"measured.{key}": value for key, value in result.cost.items() if not isinstance(value, int | float)}
    return flat({key: value for key, value in result.provenance.items() if key not in shown}) | measured


def text(value: object) -> str:
    """A setting as it is written.

    >>> text(None), text(True), text([1, 2])
    ('null', 'true', '[1, 2]')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
