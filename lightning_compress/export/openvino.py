"""OpenVINO on the CPU: the only file that imports openvino."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from lightning_compress.export.runtime import check_arguments

#: In what layers compute that have float inputs; those between rounded activations compute in integers.
Precision = Literal["f32", "bf16"]


@final
@dataclass(frozen=True)
class Layer:
    """A layer as OpenVINO runs it: its kind, the type of its numbers (u8, i8, f32, ...), and which kernel it takes."""

    name: str
    kind: str
    precision: str
    kernel: str


def name() -> str:
    """What this runtime is called in a record.

    >>> name() if why_not("f32") is None else "openvino 2026.4.0"
    'openvino 2...'
    """
    import openvino

    return f"openvino {openvino.__version__.split('-')[0]}"


def why_not(precision: Precision) -> str | None:
    """Why it cannot compute in a precision on this machine; None where it can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed: pip install 'lightning-compress[openvino]'"
    if precision == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "this CPU has no bf16 arithmetic (AVX512_BF16 or AMX)"
    return None


def session(model: Path | str, threads: int = 1, *, precision: Precision = "f32") -> Callable[[NDArray[Any]], Any]:
    """Open an ONNX file with one input; returns `inputs -> outputs`, several of them as a dict by name.

    The model is compiled for one shape at a time, which is faster than for a free batch, when a batch of that shape is
    first seen. On CPUs without VNNI its kernels add pairs of uint8 x int8 products in int16, where weights of 8 bits
    may overflow, and those of 7 cannot.

    Raises:
        FileNotFoundError: there is no file at `model`.
        ValueError: the model cannot be loaded or has not exactly one input, or `threads` is below 1.
    """
    graph = _read(model, threads)
    opened: dict[tuple[int, ...], Any] = {}

    def run(batch: NDArray[Any]) -> Any:
        if batch.shape not in opened:
            opened[batch.shape] = _compiled(graph, batch.shape, threads, precision).create_infer_request()
        made = opened[batch.shape].infer([batch], share_inputs=True)
        if len(graph.outputs) == 1:
            return np.asarray(made[0])
        return {value.any_name: np.asarray(made[place]) for place, value in enumerate(graph.outputs)}

    return run


def executed(model: Path | str, shape: tuple[int, ...], *, precision: Precision = "f32") -> list[Layer]:
    """The layers that run for a batch of a shape, after all that OpenVINO fuses; constants and the like left out.

    Additions and activation functions that go with a layer are part of it.
    """
    compiled = _compiled(_read(model, 1), shape, 1, precision)
    layers = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, number, kernel = (facts[key].astype(str) for key in ("layerType", "runtimePrecision", "primitiveType"))
        if kind not in ("Const", "Input", "Output", "Reshape"):
            layers.append(Layer(node.get_friendly_name(), kind, number, kernel))
    return layers


@functools.cache
def _core() -> Any:
    """OpenVINO itself, kept until the process ends.

    Its CPU plugin gives the thread that makes it a stack of its own for signal handlers and frees that when it ends, on
    whatever thread: the next signal that Python handled on the first one was a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _read(model: Path | str, threads: int) -> Any:
    check_arguments(model, threads)
    try:
        graph = _core().read_model(str(model))
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot load {model}: expected a whole ONNX model; {error}") from error
    if len(graph.inputs) != 1:
        raise ValueError(f"expected an ONNX model with one input, got {[value.any_name for value in graph.inputs]}")
    return graph


def _compiled(graph: Any, shape: tuple[int, ...], threads: int, precision: Precision) -> Any:
    graph = graph.clone()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        # On CPUs with VNNI, inputs of layers with 4-bit weights would be rounded to 8 bits otherwise: errors of 9 %.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    try:
        graph.reshape(list(shape))
        return _core().compile_model(graph, "CPU", options)
    except RuntimeError as error:
        raise ValueError(f"OpenVINO cannot run this model on inputs of shape {list(shape)}: {error}") from error
