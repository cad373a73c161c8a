"""Latency from a table instead of a clock: known without a quiet machine, and for a device that is not here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_compress.export import pieces
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
