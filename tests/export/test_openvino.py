import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.method import Compact
from lightning_compress.export import openvino, verify
from lightning_compress.export.onnx import export

Make = Callable[[int | None, int | None], Compact]

pytestmark = pytest.mark.skipif(openvino.why_not("f32") is not None, reason=str(openvino.why_not("f32")))
INTEGERS = {"u8", "i8"}


def _kinds(path: Path, shape: torch.Size) -> dict[str, Counter[str]]:
    """Precisions of the layers that run, by kind."""
    found: dict[str, Counter[str]] = {}
    for layer in openvino.executed(path, tuple(shape)):
        found.setdefault(layer.kind, Counter())[layer.precision] += 1
    return found


@pytest.mark.parametrize("bits", [(8, 8), (2, 8), (7, 6), (4, 4)], ids=str)
def test_every_layer_runs_on_integers(bits: tuple[int, int], residual: Make, digits: Tensor, tmp_path: Path) -> None:
    compact = residual(*bits)
    path = export(compact, digits[:2], tmp_path / "model.onnx")
    kinds = _kinds(path, digits.shape)
    assert kinds["Convolution"] == Counter(u8=3)
    assert kinds["FullyConnected"] == Counter(u8=1)
    assert set(kinds["Reduce"]) <= INTEGERS  # the mean over the image
    assert set(kinds["Pooling"]) <= INTEGERS
    # The addition is part of a convolution, or of the clip of codes below 8 bits.
    assert set(kinds.get("Eltwise", {})) <= INTEGERS
    assert not set(kinds) & {"Add", "Convert", "MatMul"}
    # Roundings of floats: of the input, of what goes into the linear layer, below 8 bits of the first layer's output.
    assert sum((kinds.get("Subgraph", Counter()) + kinds.get("FakeQuantize", Counter())).values()) <= 3
    layers = openvino.executed(path, tuple(digits.shape))
    assert all("I8" in layer.kernel for layer in layers if layer.kind in ("Convolution", "FullyConnected"))


def test_a_float_model_runs_on_floats(residual: Make, digits: Tensor, tmp_path: Path) -> None:
    path = export(residual(None, None), digits[:2], tmp_path / "model.onnx")
    assert _kinds(path, digits.shape)["Convolution"] == Counter(f32=3)


@pytest.mark.parametrize("bits", [(None, None), (7, 8), (4, 4), (8, None)], ids=str)
def test_it_computes_the_model_also_beyond_the_range_of_codes(
    bits: tuple[int | None, int | None], residual: Make, digits: Tensor, tmp_path: Path
) -> None:
    compact = residual(*bits)
    run = openvino.session(export(compact, digits[:2], tmp_path / "model.onnx"))
    for inputs in (digits, 4 * digits):
        verify.check(verify.compare(compact.model, run, inputs), verify.tolerance(compact.model))


def test_asymmetric_activations_stay_integers(digits: Tensor, tmp_path: Path, compact: Compact) -> None:
    """Zero points of all kinds, a mask, 2 bits, 15 as the highest code, an affine weight, a raw one."""
    path = export(compact, digits[:2], tmp_path / "model.onnx")
    kinds = _kinds(path, digits.shape)
    assert kinds["Convolution"]["u8"] + kinds["Convolution"]["i8"] == 3
    found = verify.compare(compact.model, openvino.session(path), digits)
    verify.check(found, verify.tolerance(compact.model))


def test_outputs_are_the_callers_own(residual: Make, digits: Tensor, tmp_path: Path) -> None:
    run = openvino.session(export(residual(None, None), digits[:2], tmp_path / "model.onnx"))
    first = run(digits[:2].numpy())
    before = first.copy()
    run(digits[2:4].numpy())
    assert (first == before).all()


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ONNX file at .*absent\.onnx"):
        openvino.session(tmp_path / "absent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"cannot load .*broken\.onnx: expected a whole ONNX model"):
        openvino.session(tmp_path / "broken.onnx")
    net = nn.Linear(3, 2).eval().requires_grad_(False)
    path = export(Compact(net, {}), torch.zeros(2, 3), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        openvino.session(path, 0)
    with pytest.raises(ValueError, match=r"cannot run this model on inputs of shape \[2, 5\]"):
        openvino.session(path)(torch.zeros(2, 5).numpy())


def test_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert openvino.why_not("f32") == "openvino is not installed: pip install 'lightning-compress[openvino]'"


@pytest.mark.skipif(openvino.why_not("bf16") is not None, reason=str(openvino.why_not("bf16")))
def test_bf16_kernels(residual: Make, digits: Tensor, tmp_path: Path) -> None:
    compact = residual(None, None)
    path = export(compact, digits[:2], tmp_path / "model.onnx")
    layers = openvino.executed(path, tuple(digits.shape), precision="bf16")
    assert {layer.precision for layer in layers if layer.kind == "Convolution"} == {"bf16"}
    found = verify.compare(compact.model, openvino.session(path, precision="bf16"), digits)
    assert 1e-5 < found["relative_error"] < 2**-6
