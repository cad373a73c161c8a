"""PyTorch itself as a runtime: eager, and compiled with the integer kernels that Inductor has for x86 CPUs."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils._pytree import tree_map

from lightning_compress.core import surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.export import integer
from lightning_compress.export.integer import Coded, Deployed, Rounded
from lightning_compress.export.runtime import check_arguments

Session = Callable[[NDArray[Any]], Any]

_ops = torch.ops.quantized_decomposed
name = f"torch {torch.__version__}"


def eager(compact: Compact, threads: int = 1) -> Session:
    """A finalized model as it stands: activations are rounded in floats, everything else computes in floats.

    Raises:
        ValueError: `threads` is below 1.

    >>> import numpy as np
    >>> eager(Compact(nn.ReLU(), {}))(np.array([[-1.0, 2.0]], np.float32))
    array([[0., 2.]], dtype=float32)
    """
    return _session(compact.model, threads)


def why_not() -> str | None:
    """Why models cannot be compiled here; None where they can."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler and there is no {compiler!r}: install g++, or set CXX to yours"
    return None


def compiled(compact: Compact, threads: int = 1) -> Session:
    """A finalized model through torch.compile with frozen weights, compiled for each shape when it is first seen.

    Convolutions and linear layers with int8 codes and rounded inputs run on integers where oneDNN has kernels for that,
    with additions, rectifiers and the rounding of what they put out in them; the rest computes in floats. On CPUs
    without VNNI these kernels add pairs of uint8 x int8 products in int16, where weights of 8 bits may overflow, and
    those of 7 cannot.

    Raises:
        ValueError: `threads` is below 1; when it is called: it cannot be compiled.
    """
    model = _lowered(compact)
    made: dict[torch.Size, Callable[[Tensor], Any]] = {}

    def call(inputs: Tensor) -> Any:
        if inputs.shape not in made:
            made[inputs.shape] = _compile(model, inputs)
        return made[inputs.shape](inputs)

    return _session(call, threads)


def _session(call: Callable[[Tensor], Any], threads: int) -> Session:
    check_arguments(b"", threads)

    def run(batch: NDArray[Any]) -> Any:
        with _on(threads), torch.no_grad():
            return tree_map(Tensor.numpy, call(torch.from_numpy(batch)))

    return run


@contextmanager
def _on(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compile(model: nn.Module, inputs: Tensor) -> Callable[[Tensor], Any]:
    """The model for inputs of this shape, compiled.

    It is exported first: torch.compile keeps a few variants of a function only, and models share the code of theirs.
    """
    with warnings.catch_warnings(), inductor.patch(freezing=True):
        warnings.simplefilter("ignore")
        try:
            graph = torch.export.export(model, (inputs,)).module()
            made = torch.compile(graph, dynamic=False)
            made(inputs)
        except Exception as error:  # whatever the many parts of the compiler raise
            first = str(error).partition("\n")[0]
            raise ValueError(f"torch.compile cannot compile this model: {first}") from error
    return made


@final
class _Weight(nn.Module):
    """An int8 weight in the form that Inductor looks for: with zero points, and a scale for each output channel."""

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        channels = len(coded.codes)
        self.register_buffer("codes", coded.codes)
        self.register_buffer("scale", coded.scale.expand(channels).contiguous())
        self.register_buffer("zero", torch.zeros(channels, dtype=torch.int64))

    def forward(self) -> Tensor:
        """The float tensor."""
        outputs: Tensor = _ops.dequantize_per_channel(self.codes, self.scale, self.zero, 0, -128, 127, torch.int8)
        return outputs


@final
class _Round(nn.Module):
    """A `Rounded` in the form that Inductor looks for."""

    def __init__(self, rounded: Rounded) -> None:
        super().__init__()
        self.scale, self.zero = float(rounded.scale), int(rounded.zero)
        self.most = None if rounded.high is None else (int(rounded.high) - self.zero) * self.scale

    def forward(self, inputs: Tensor) -> Tensor:
        """The rounded inputs."""
        # Inductor forgets the highest code where it fuses the rounding into a kernel, so the floats are clipped.
        inputs = inputs if self.most is None else inputs.clamp(max=self.most)
        codes = _ops.quantize_per_tensor(inputs, self.scale, self.zero, 0, 255, torch.uint8)
        outputs: Tensor = _ops.dequantize_per_tensor(codes, self.scale, self.zero, 0, 255, torch.uint8)
        return outputs


def _lowered(compact: Compact) -> nn.Module:
    """The model over `quantized_decomposed` operators; weights that no integer kernel takes stay floats."""
    coded = integer.deployed(compact).coded
    model = integer.deployed(compact).model
    for path, module in list(model.named_modules()):
        if isinstance(module, Rounded):
            model = surgery.replace(model, path, _Round(module))
    weights = {}
    for path, layer in compact.model.named_modules():
        weight = surgery.dotted(path, "weight")
        found = coded.get_submodule(weight.replace(".", "/")) if weight.replace(".", "/") in coded else None
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and isinstance(found, Coded):
            rounded = isinstance(getattr(layer, surgery.INPUT_CHILD, None), FixedQuantizer)
            if rounded and found.codes.dtype == torch.int8 and found.axis == 0 and not found.block:
                weights[weight] = _Weight(found)
    return Deployed(model, weights).eval()
