"""Latency of a finished run's exported file, later and apart from training."""

from pathlib import Path
from typing import Any

import torch

from lightning_compress.core.files import sha256
from lightning_compress.export import runtime
from lightning_compress.run import measure, priced
from lightning_compress.run.result import FILE, Result


def time_run(folder: Path, reference: Path | None = None, record: str = FILE) -> dict[str, Any]:
    """Time the ONNX file of a run beside a dense one and add the numbers to its file `record`; returns them.

    `reference` is by default the run's own: `measure.reference`, or the `dense.onnx` in its folder. Batch, threads,
    rounds and runtimes are those of its configuration; the inputs are random, which latency does not depend on. With a
    `measure.table` nothing is timed: the numbers are the table's. A run that has its numbers is left as it is.

    Raises:
        FileNotFoundError: there is no ONNX file, or no table.
        ValueError: the folder holds no finished run, or the table lacks a layer of its network.
    """
    result = Result.load(folder, record)
    if "latency_ms" not in result.cost:
        dense, model = _files(result, folder, reference)
        options = result.config["measure"]
        if options.get("table"):
            result.cost |= priced.price_beside(dense, model, priced.table_of(options))
        else:
            result.cost |= _timed(dense, model, options)
        result.save(folder, record)
    return {key: value for key, value in result.cost.items() if key in _KEYS or "latency" in key}


def time_priced(folder: Path, reference: Path | None = None) -> dict[str, Any] | None:
    """What `time_run` measures, of a run whose latency came from a table; None where the table is of another device.

    With the hashes of both files, as `measure.py` of a deploy folder writes it. The run's own record is left as it is.

    Raises:
        FileNotFoundError: there is no ONNX file, or no table.
        ValueError: the folder holds no finished run.
    """
    result = Result.load(folder)
    options = result.config["measure"]
    if priced.table_of(options).device != runtime.device_name():
        return None
    dense, model = _files(result, folder, reference)
    return {**_timed(dense, model, options), "model_sha256": sha256(model), "dense_sha256": sha256(dense)}


def _files(result: Result, folder: Path, reference: Path | None) -> tuple[Path, Path]:
    asked = result.config["measure"]["reference"]
    return reference or (Path(asked) if asked else folder / measure.DENSE), folder / result.files["onnx"]


def _timed(dense: Path, model: Path, options: dict[str, Any]) -> dict[str, Any]:
    timing = measure.Timing(**{name: options[name] for name in ("batch_size", "threads", "rounds", "runtimes")})
    inputs = torch.from_numpy(runtime.stand_in(model, timing.batch_size))
    return measure.time_beside(dense, model, inputs, timing)


_KEYS = ("runtime", "dense_runtime", "runtimes_left_out", "device", "threads", "batch_size")
