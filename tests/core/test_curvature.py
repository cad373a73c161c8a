from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

from lightning_compress.core.curvature import derivable, diagonals, products
from lightning_compress.core.method import Method
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.sensitivity import Sensitivity


def test_products_are_those_of_the_whole_hessian() -> None:
    torch.manual_seed(0)
    x, a, b = torch.randn(7, 3), torch.randn(4, 3, requires_grad=True), torch.randn(2, 4, requires_grad=True)

    def loss(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return ((x @ first.T).tanh() @ last.T).square().mean()

    blocks = hessian(loss, (a, b))  # type: ignore[no-untyped-call]
    vectors = [[torch.randn(4, 3), torch.randn(2, 4)] for _ in range(2)]
    for vector, found in zip(vectors, products(loss(a, b), [a, b], vectors), strict=True):
        for row, got in zip(blocks, found, strict=True):
            wanted = sum(torch.tensordot(part, v, dims=v.dim()) for part, v in zip(row, vector, strict=True))
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_the_diagonal_of_a_quadratic_form() -> None:
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, -1.0, 0.3], [0.0, 0.3, 4.0]])
    x = torch.randn(3, requires_grad=True)
    (found,) = diagonals(0.5 * x @ matrix @ x, [x], 2000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, matrix.diagonal(), atol=0.06, rtol=0.0)
    assert not found.requires_grad


def test_a_leaf_that_the_loss_does_not_bend_in_has_a_diagonal_of_zero() -> None:
    layer, idle = nn.Linear(2, 1), torch.ones(2, requires_grad=True)
    found = diagonals(layer(torch.ones(1, 2)).sum(), [layer.weight, idle], 2, torch.Generator())
    assert [float(part.abs().sum()) for part in found] == [0.0, 0.0]


class _Reads(nn.Module):
    """A layer of nn.TransformerEncoder and one of an LSTM; notes whether cuDNN may compute what derivatives are of."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.lstm = nn.LSTM(4, 3, batch_first=True)
        self.seen: set[bool] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.add(torch.backends.cudnn.enabled)
        outputs: Tensor = self.lstm(self.attention(inputs))[0][:, -1]
        return outputs


@pytest.mark.parametrize("make", [lambda: Prune(0.5, score="grasp"), lambda: Quantize(Sensitivity(weight_bytes=200))])
def test_attention_and_recurrent_layers_run_on_kernels_that_have_second_derivatives(make: Callable[[], Method]) -> None:
    model, method, inputs = _Reads(), make(), torch.randn(6, 5, 4)
    method.attach(model, inputs)
    method.prepare(model, [(inputs, torch.randint(3, (6,)))])
    method.update(model, 1.0)
    assert model.seen == {False}  # cuDNN's recurrent kernels have no derivatives in eval mode
    assert torch.backends.cudnn.enabled
    with derivable(nn.Conv1d(1, 1, 1)):
        assert torch.backends.cudnn.enabled
