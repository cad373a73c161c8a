"""Latency from a table instead of a clock: known without a quiet machine, and for a device that is not here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from torch import Tensor, nn

from lightning_compress.core.compressor import read_stored
from lightning_compress.core.method import Compact
from lightning_compress.export import onnx, pieces
from lightning_compress.export.latency_table import Table


def table_of(options: Mapping[str, Any]) -> Table:
    """The latency table that a run's options under `measure` name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no table, or one of another batch or number of threads.
    """
    table, asked = Table.read(Path(options["table"])), (options["batch_size"], options["threads"])
    if (table.batch_size, table.threads) != asked:
        raise ValueError(
            f"{table.source} is of batches of {table.batch_size} on {table.threads} thread(s), the run asks for "
            f"{asked[0]} on {asked[1]}: set measure.batch_size={table.batch_size} measure.threads={table.threads}, or "
            "measure such a table"
        )
    return table


def price_beside(dense: Path, model: Path, table: Table) -> dict[str, Any]:
    """Latency of an ONNX file and its ratio to a dense one's by the table, as a Result's cost has it.

    Raises:
        ValueError: a layer is not in the table.
    """
    (ours, kernels), (theirs, _) = (table.predict(pieces.read(file)) for file in (model, dense))
    return {
        "latency_ms": ours,
        "latency_ratio": ours / theirs,
        "dense_latency_ms": theirs,
        "runtime": table.runtime if kernels != "float" else f"{table.runtime}, float kernels",
        "device": table.device,
        "threads": table.threads,
        "batch_size": table.batch_size,
        "latency_source": f"predicted from {Path(table.source).name}: {table.error or 'of unknown error'}",
    }


@final
class ByChannels:
    """What a network in floats takes by a latency table, for numbers of channels that `Prune(latency=...)` tries.

    Raises:
        FileNotFoundError: there is no table at `file`.
        ValueError: it holds no table.
    """

    def __init__(self, file: str | Path) -> None:
        self._table = Table.read(Path(file))

    def __call__(self, model: nn.Module, example: Tensor) -> Callable[[Mapping[str, tuple[int, int]]], float]:
        """Milliseconds by the first two sizes of the weights of the layers of a plain `model` in eval mode.

        Raises:
            ValueError: the model has a layer that is not in the table.
        """
        with TemporaryDirectory() as folder:
            file = onnx.export(Compact(model.eval(), read_stored(model)), example, Path(folder) / "model.onnx")
            network = pieces.narrowable(file)
        self._table.check(network.network)
        known = {layer.name for layer in network.network.layers}

        def price(shapes: Mapping[str, tuple[int, int]]) -> float:
            if lost := sorted(shapes.keys() - known):
                raise ValueError(f"{self._table.source}: the exported network has no layer called {', '.join(lost)}")
            return self._table.predict(network.at(shapes))[0]

        return price
