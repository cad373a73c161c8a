"""The files of a finalized model, written and checked: the packed one and ONNX."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.core.inputs import call, rows
from lightning_compress.core.method import Compact
from lightning_compress.export import onnx, packed, runtime, verify

PACKED, ONNX = "model.lcz", "model.onnx"
KERNELS: tuple[runtime.Kernels, ...] = ("integer", "float")


def write_packed(
    compact: Compact, base: nn.Module, inputs: Any, path: Path, architecture: dict[str, Any] | None
) -> packed.Packed:
    """Write the packed file and see that it gives back the model's outputs bit for bit; returns what it holds.

    Raises:
        ValueError: it does not.
    """
    packed.write(compact, path, architecture=about(architecture, inputs))
    written = packed.read(path)
    again = packed.rebuild(written, base)
    with torch.no_grad():
        pairs = zip(tree_leaves(call(again, inputs)), tree_leaves(call(compact.model, inputs)), strict=True)
        if not all(torch.equal(ours, own) for ours, own in pairs):
            raise ValueError(f"{path} does not give back the model's outputs bit for bit")
    return written


def about(architecture: dict[str, Any] | None, inputs: Any) -> dict[str, Any]:
    """What a packed file says of its network and of what that takes, if that is one tensor: float32 unless it says so.

    >>> about(None, torch.zeros(2, 1, 8, 8))
    {'model': None, 'input_shape': [1, 8, 8]}
    """
    if not isinstance(inputs, Tensor):
        return {"model": architecture}
    dtype = {} if inputs.is_floating_point() else {"input_dtype": str(inputs.dtype).removeprefix("torch.")}
    return {"model": architecture, "input_shape": list(inputs.shape[1:]), **dtype}


def write_onnx(compact: Compact, inputs: Any, path: Path) -> dict[str, float]:
    """Write the ONNX file and compare it with the model on real inputs.

    Raises:
        ExportMismatchError: they disagree by more than rounding explains.
    """
    onnx.export(compact, rows(inputs, slice(2)), path)
    checks: dict[str, float] = {}
    for kernels in KERNELS:
        found = verify.compare(compact.model, runtime.session(path, kernels=kernels), inputs)
        verify.check(found, verify.tolerance(compact.model))
        checks |= {f"{kernels}/{name}": value for name, value in found.items()}
    return checks
