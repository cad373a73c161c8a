from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.inputs import call, rows
from lightning_compress.core.method import Compact
from lightning_compress.export import onnx, runtime, verify
from lightning_compress.quantize.method import Quantize


class Twice(nn.Module):
    """One layer for two inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        outputs: Tensor = self.layer(one) - 2 * self.layer(other).relu()
        return outputs


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.Conv1d(3, 4, 3), nn.Linear(6, 5)])
def test_a_layer_that_is_called_twice_keeps_its_eight_bits(layer: nn.Module, tmp_path: Path) -> None:
    shape = {nn.Conv2d: (3, 8, 8), nn.Conv1d: (3, 9), nn.Linear: (6,)}[type(layer)]
    inputs = torch.randn(16, *shape), torch.randn(16, *shape)
    compressor = Compressor([Quantize(8, 8)])
    model = compressor.attach(Twice(layer), inputs)
    compressor.prepare(model, [(inputs, None)], trains=False)
    compact = compressor.finalize(model, inputs)
    file = onnx.export(compact, inputs, tmp_path / "model.onnx")
    for kernels in ("integer", "float"):
        found = verify.compare(compact.model, runtime.session(file, kernels=kernels), inputs)
        verify.check(found, verify.tolerance(compact.model))


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_go_by_the_names_that_forward_has(by_name: bool, tmp_path: Path) -> None:
    net = Twice(nn.Linear(3, 2)).eval().requires_grad_(False)
    one, other = torch.randn(5, 3), torch.randn(5, 3)
    example = {"other": other, "one": one} if by_name else (one, other)
    session = runtime.session(onnx.export(Compact(net, {}), rows(example, slice(1)), tmp_path / "model.onnx"))
    found = torch.from_numpy(session({"one": one.numpy(), "other": other.numpy()}))
    torch.testing.assert_close(found, call(net, example))


def test_tokens_and_their_mask_beside_numbers_are_of_any_length(tmp_path: Path) -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)

        def forward(self, tokens: Tensor, given: Tensor, kind: Tensor, scale: Tensor) -> Tensor:
            texts = (self.embedding(tokens) * given[..., None]).mean(1)
            outputs: Tensor = (texts + self.embedding(kind)) * scale
            return outputs

    net = Read().eval().requires_grad_(False)

    def batch(number: int, length: int) -> tuple[Tensor, ...]:
        tokens = torch.randint(7, (number, length))
        return tokens, (tokens > 1).long(), torch.randint(7, (number,)), torch.randn(number, 4)

    example = batch(2, 6)
    file = onnx.export(Compact(net, {}), example, tmp_path / "model.onnx")
    assert verify.compare(net, runtime.session(file), batch(3, 9))["max_error"] < 1e-6


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    net = Twice(nn.Identity())
    with pytest.raises(ValueError, match="Twice takes 'other' as a int, expected a tensor"):
        onnx.export(Compact(net, {}), (torch.ones(1, 2), 3), tmp_path / "model.onnx")
