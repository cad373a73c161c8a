"""A measured per-layer latency table of a device: what a network will take there, and how far off that is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from lightning_compress.export.layers import Layer, Network

SCHEMA = 1
_PLAIN, _WAYS = "plain", ("integer", "float")
_SUM = np.array([1.0, 0.0, 0.0])
_WAY = "`lightning-compress latency-table model=... data=... --out FILE`"
Array = NDArray[np.float64]


@final
@dataclass(frozen=True)
class Error:
    """How far predictions are off on `networks` that nothing was fitted to, as shares of what was measured.

    `ratio_...` are those of the ratio to the table's first network, `rank` is Spearman's correlation of the ratios.
    """

    networks: int
    mean: float
    worst: float
    ratio_mean: float
    ratio_worst: float
    rank: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"on {self.networks} networks not fitted to, ratios are off by {self.ratio_mean:.1%} (mean), "
            f"{self.ratio_worst:.1%} (worst), rank correlation {self.rank:.3f}"
        )


@final
class Table:
    """Milliseconds a batch of layers on a device, by kernels, and of networks made of them.

    A network's time is predicted as a sum over its layers, between measured channel counts by interpolation, times a
    factor near 1, plus rates for what its other operators write. Factor and rates are fitted, none below 0, to those of
    the table's networks that say so, apart for float networks, integer kernels and float kernels on quantized networks;
    of these last two the faster ones count.

    Raises:
        ValueError: `data` is not what `measure_table.py` writes.
    """

    def __init__(self, data: Mapping[str, Any], source: str = "the table") -> None:
        self.source = source
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else None
            raise ValueError(
                f"{source} is no latency table of schema {SCHEMA}, it has {found!r}: write one with {_WAY}"
            )
        try:
            self.device, self.runtime = str(data["device"]), str(data["runtime"])
            self.threads, self.batch_size = int(data["threads"]), int(data["batch_size"])
            self.grids = {grid.layer.family: grid for grid in map(Grid.of, data["layers"])}
            self.measured = tuple((Network.of(one), one["ms"], bool(one["fitted"])) for one in data["networks"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{source} is a damaged latency table ({error}): write it again with {_WAY}") from error
        self._price = cache(lambda layer, way: self.grids[layer.family].price(layer, way))

    @classmethod
    def read(cls, file: Path) -> Self:
        """The table in a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no table.
        """
        if not file.is_file():
            raise FileNotFoundError(f"no latency table at {file}: write one with {_WAY}, or correct the path")
        try:
            return cls(json.loads(file.read_text(encoding="utf-8")), str(file))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is no latency table ({error}): write one with {_WAY}") from error

    def check(self, network: Network) -> None:
        """See that every layer is in the table.

        Raises:
            ValueError: one is not; names it.
        """
        for layer in network.layers:
            grid = self.grids.get(layer.family)
            if grid is None or not grid.covers(layer):
                most = "" if grid is None else f" only up to {grid.ins[-1]:g} in and {grid.outs[-1]:g} out"
                raise ValueError(
                    f"{self.source} does not price layer {layer.name!r}, a {layer} ({layer.before} to {layer.after}) "
                    f"of {layer.ins} channels in and {layer.outs} out{': it has such' if most else ''}{most}: measure "
                    f"again with this model and data, at its largest width: {_WAY}"
                )

    def predict(self, network: Network) -> tuple[float, str]:
        """Milliseconds a batch, and the kernels that take so long.

        Raises:
            ValueError: a layer is not in the table.
        """
        self.check(network)
        return min((float(self._terms(network, way) @ self._rates[way]), way) for way in _ways(network))

    @cached_property
    def error(self) -> Error | None:
        """How far off it is on networks that it was not fitted to; None where it has none."""
        apart = [(network, ms) for network, ms, fitted in self.measured if not fitted]
        if not apart:
            return None
        first, first_ms, _ = self.measured[0]
        told = np.array([self.predict(network)[0] for network, _ in apart])
        taken = np.array([min(ms.values()) for _, ms in apart])
        off = abs(told / taken - 1)
        told_ratio, ratio = told / self.predict(first)[0], taken / min(first_ms.values())
        off_ratio = abs(told_ratio / ratio - 1)
        ranks = np.array([np.argsort(np.argsort(values)) for values in (told_ratio, ratio)])
        rank = float(np.asarray(np.corrcoef(ranks))[0, 1]) if len(apart) > 1 else 1.0
        return Error(
            len(apart), float(off.mean()), float(off.max()), float(off_ratio.mean()), float(off_ratio.max()), rank
        )

    def told(self) -> list[str]:
        """What a user reads of it: where it is from, how far off it is, what layers take by their channel counts."""
        lines = [
            f"{self.device}, {self.runtime}, {self.threads} thread(s), batch {self.batch_size}",
            str(self.error or "how far predictions are off was not measured"),
            "ms by channels out, with the most channels in; where the steps are is what channel counts should be "
            "rounded to (methods.prune.round_to):",
        ]
        for grid in self.grids.values():
            fastest = np.min([ms[-1] for ms in grid.ms.values()], axis=0)
            costs = ", ".join(f"{count:g}: {ms:.3g}" for count, ms in zip(grid.outs, fastest, strict=True))
            sides = f"{grid.layer.before} to {grid.layer.after}, {grid.ins[-1]:g} in"
            lines.append(f"  {grid.layer}, {sides}: {costs}")
        return lines

    @cached_property
    def _rates(self) -> dict[str, Array]:
        """Of each way to run a network: the factor on its layers, and the rates of what its other operators write."""
        terms: dict[str, list[Array]] = {way: [] for way in (_PLAIN, *_WAYS)}
        for network, ms, fitted in self.measured:
            for way in _ways(network) if fitted else ():
                terms[way].append(self._terms(network, way) / ms.get(way, min(ms.values())))
        return {way: _fitted(np.array(known)) if known else _SUM for way, known in terms.items()}

    def _terms(self, network: Network, way: str) -> Array:
        layers = sum(self._price(layer, way) for layer in network.layers)
        return np.array([layers, network.moved["float"], network.moved["uint8"]], float)


def _ways(network: Network) -> tuple[str, ...]:
    """The kernels that a network can run on; without integers in it there is no choice."""
    return _WAYS if any(layer.before == "uint8" for layer in network.layers) else (_PLAIN,)


@final
@dataclass(frozen=True)
class Grid:
    """Milliseconds of a family of layers over channel counts: [ins, outs] by kernels."""

    layer: Layer
    ins: Array
    outs: Array
    ms: Mapping[str, Array]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The grid that `measure_table.py` wrote."""
        ins, outs = (np.array(data[side], float) for side in ("ins", "outs"))
        ms = {kernels: np.array(values, float) for kernels, values in data["ms"].items()}
        wrong = [values.shape for values in ms.values() if values.shape != (len(ins), len(outs))]
        if wrong or not ms or not all(np.isfinite(values).all() and (values > 0).all() for values in ms.values()):
            raise ValueError(f"expected finite ms above 0 for {len(ins)} x {len(outs)} channel counts")
        return cls(Layer.of(data["layer"]), ins, outs, ms)

    def covers(self, layer: Layer) -> bool:
        """Whether the layer's channel counts are within those measured."""
        return all(count <= counts[-1] for count, counts in zip(layer.place, (self.ins, self.outs), strict=True))

    def price(self, layer: Layer, kernels: str) -> float:
        """Milliseconds of a layer of the family; float layers know one kind of kernels only."""
        rows = self.ms.get(kernels, next(iter(self.ms.values())))
        (ins, outs), alike = (
            layer.place,
            [_alike(*side) for side in zip(layer.place, (self.ins, self.outs), strict=True)],
        )
        over_outs = [np.interp(outs, self.outs[alike[1]], row[alike[1]]) for row in rows[alike[0]]]
        return float(np.interp(ins, self.ins[alike[0]], over_outs))


def _alike(count: int, counts: Array) -> NDArray[np.bool_]:
    """Which of the `counts` measured a count lies between: runtimes have other kernels for multiples of 4."""
    same: NDArray[np.bool_] = (counts % 4 == 0) == (count % 4 == 0)
    return same if same.any() else ~same


def _fitted(terms: Array) -> Array:
    """Factor and rates; layers are in milliseconds already, so one more row, a tenth of all, asks for a factor of 1."""
    weight = (0.1 * len(terms)) ** 0.5
    return nonnegative(np.vstack([terms, weight * _SUM]), np.append(np.ones(len(terms)), weight))


def nonnegative(terms: Array, wanted: Array) -> Array:
    """The weights, none below 0, whose sums of `terms` [cases, kinds] come closest to `wanted`, by least squares.

    >>> nonnegative(np.array([[1.0, 0.0], [0.0, 0.5]]), np.array([1.0, 2.0])).tolist()
    [1.0, 4.0]
    """
    cases, kinds = terms.shape
    best, least = np.zeros(kinds), np.inf
    for number in range(1, min(cases, kinds) + 1):
        for chosen in map(list, combinations(range(kinds), number)):
            weights = np.linalg.lstsq(terms[:, chosen], wanted, rcond=None)[0]
            missed = float(((terms[:, chosen] @ weights - wanted) ** 2).sum())
            if (weights >= 0).all() and missed < least - 1e-12:
                best, least = np.zeros(kinds), missed
                best[chosen] = weights
    return best
