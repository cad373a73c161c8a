"""Timing a finished run's exported file, later and apart from training."""

from pathlib import Path
from typing import Any

import torch

from lightning_compress.export import runtime
from lightning_compress.run import measure
from lightning_compress.run.result import FILE, Result


def time_run(folder: Path, reference: Path | None = None, record: str = FILE) -> dict[str, Any]:
    """Time the ONNX file of a run beside a dense one and add the numbers to its file `record`; returns them.

    `reference` is by default the run's own: `measure.reference`, or the `dense.onnx` in its folder. Batch, threads,
    rounds and runtimes are those of its configuration; the inputs are random, which latency does not depend on. A run
    that has its numbers is left as it is.

    Raises:
        FileNotFoundError: there is no ONNX file.
        ValueError: the folder holds no finished run.
    """
    result = Result.load(folder, record)
    if "latency_ms" not in result.cost:
        options = result.config["measure"]
        own = Path(options["reference"]) if options["reference"] else folder / measure.DENSE
        names = ("batch_size", "threads", "rounds", "runtimes")
        timing = measure.Timing(**{name: options[name] for name in names})
        model = folder / result.files["onnx"]
        inputs = torch.randn(timing.batch_size, *runtime.input_shape(model))
        result.cost |= measure.time_beside(reference or own, model, inputs, timing)
        result.save(folder, record)
    return {key: value for key, value in result.cost.items() if key in _KEYS or "latency" in key}


_KEYS = ("runtime", "dense_runtime", "runtimes_left_out", "device", "threads", "batch_size")
