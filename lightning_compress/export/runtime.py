"""ONNX Runtime, on the CPU unless asked otherwise: the only file that imports onnxruntime."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lightning_compress.export.sealed import checked
from lightning_compress.tracking.provenance import cpu_name

name = f"onnxruntime {onnxruntime.__version__}"


Kernels = Literal["integer", "float"]
#: Where it computes. Those on a GPU were never run by this project's tests.
Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
# It rounds float weights between quantized activations to 8 bits, with one step for all, which nobody asked for.
_DISABLED = ["WeightBiasQuantization"]


def session(
    model: Path | str | bytes,
    threads: int = 1,
    *,
    kernels: Kernels = "integer",
    provider: Provider = "CPUExecutionProvider",
) -> Callable[[Any], Any]:
    """Open an ONNX model, a file or its bytes; returns `inputs -> outputs`.

    Inputs are an array, or where there are several, a tuple in the model's order or a dict by name; outputs are an
    array, or where there are several, a dict of arrays by their names.

    All graph optimisations are on. Operators run one after the other on `threads` threads; with one thread nothing
    spins while it waits, so that a measurement does not disturb its neighbours.

    With integer `kernels`, layers between QuantizeLinear and DequantizeLinear run on integers where ONNX Runtime can.
    With float ones it takes those operators as they stand: integer weights become float ones when the session opens and
    the rounding of activations stays. That is the faster way on CPUs without VNNI, and for float activations anywhere.

    Raises:
        FileNotFoundError: there is no file at `model`.
        ValueError: the model cannot be loaded, `threads` is below 1, or the `provider` does not start; when it is
            called: it cannot be run on these inputs.

    Example:
        >>> from onnx import TensorProto, helper
        >>> def value(name):
        ...     return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])
        >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
        >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        >>> session(model.SerializeToString())(np.array([[-1.0, 2.0]], np.float32))
        array([[0., 2.]], dtype=float32)
    """
    opened = _open(model, threads, kernels, provider)
    inputs = [value.name for value in opened.get_inputs()]
    outputs = [value.name for value in opened.get_outputs()]

    def run(batch: Any) -> Any:
        given = by_name(batch, inputs)
        try:
            made = opened.run(outputs, given)
        except Exception as error:  # the errors of onnxruntime have no base class of their own
            why, shapes = " ".join(str(error).split()), ", ".join(str(value.shape) for value in given.values())
            raise ValueError(f"{_name(model)} cannot be run on inputs of shape {shapes}: {why}") from error
        return np.asarray(made[0]) if len(outputs) == 1 else dict(zip(outputs, map(np.asarray, made), strict=True))

    return run


def by_name(batch: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a batch by the names of a model's inputs: a mapping by name, a tuple in their order, or one array.

    Raises:
        ValueError: they are not as many, or have other names.

    >>> by_name(np.ones(2), ["x"])
    {'x': array([1., 1.])}
    """
    given = dict(batch) if isinstance(batch, Mapping) else None
    if given is None:
        several = batch if isinstance(batch, tuple | list) else (batch,)
        given = dict(zip(names, several, strict=False)) if len(several) == len(names) else {}
    if given.keys() != set(names):
        got = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"expected inputs called {', '.join(names)}, by name or in that order; got {got}")
    return given


def check_arguments(model: Path | str | bytes, threads: int) -> None:
    """See that there is a file which is fit to be opened (`sealed.checked`), and a thread to run it.

    Raises:
        FileNotFoundError: there is no file at `model`.
        ValueError: the file is damaged or no ONNX model, or `threads` is below 1.

    >>> check_arguments(b"a model", 1)
    """
    if threads < 1:
        raise ValueError(f"expected at least 1 thread, got {threads}")
    if not isinstance(model, bytes):
        checked(Path(model))


def why_not(provider: Provider) -> str | None:
    """Why nothing can run on a provider here; None where it may.

    >>> why_not("CPUExecutionProvider")
    """
    if provider in onnxruntime.get_available_providers():
        return None
    return f"{name} was built without {provider}: install onnxruntime-gpu in its place, on a machine with an NVIDIA GPU"


def _open(
    model: Path | str | bytes, threads: int, kernels: Kernels, provider: Provider = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    check_arguments(model, threads)
    source = model if isinstance(model, bytes) else str(model)
    try:
        opened = onnxruntime.InferenceSession(
            source,
            _options(threads, kernels),
            providers=[provider],
            disabled_optimizers=_DISABLED,
            enable_fallback=0,  # which prints, and tries the same again
        )
    except Exception as error:  # the errors of onnxruntime have no base class of their own
        why = " ".join(str(error).split())
        raise ValueError(
            f"cannot load {_name(source)}: expected a whole ONNX model, but ONNX Runtime says {why}"
        ) from error
    if provider not in opened.get_providers():  # it goes on with the CPU and says so on stderr only
        raise ValueError(f"{provider} does not start here: write another runtime, or see that its libraries are found")
    return opened


def _name(model: Path | str | bytes) -> str:
    return "these bytes" if isinstance(model, bytes) else str(model)


def stand_in(model: Path | str | bytes, batch_size: int) -> NDArray[Any]:
    """What to time a model on where there is no data: a batch of random numbers, or of the token 1 as often as fits.

    The length of texts is the one that the model was exported with.

    Raises:
        FileNotFoundError: there is no file at `model`.
        ValueError: the model cannot be loaded, or a dimension other than the batch and that length is free.
    """
    opened = _open(model, 1, "integer")
    wanted, known = opened.get_inputs()[0], opened.get_modelmeta().custom_metadata_map
    sizes: list[Any] = [int(known[size]) if size in known else size for size in wanted.shape[1:]]
    if any(not isinstance(size, int) for size in sizes):
        raise ValueError(f"expected an input whose only free dimension is the batch, got {wanted.shape}")
    if wanted.type == "tensor(int64)":
        return np.ones((batch_size, *sizes), np.int64)
    return np.random.default_rng(0).standard_normal((batch_size, *sizes), np.float32)


def device_name() -> str:
    """Name of the device that a `session` computes on: the model of the CPU.

    Example:
        >>> device_name() == cpu_name()
        True
    """
    return cpu_name()


def _options(threads: int, kernels: Kernels) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Without it CPUs with AVX2 but no VNNI add pairs of uint8 x int8 products in int16, which overflows at 8 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # 4-bit weights times float activations: it would round those to 8 bits, which nobody asked for.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 4  # what goes wrong is raised
    if kernels == "float":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options
