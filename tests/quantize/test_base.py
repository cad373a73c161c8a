from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_compress.core.compressor import read_stored
from lightning_compress.core.mask import Mask
from lightning_compress.quantize.base import extremes, mean_magnitude, rows
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.named import WEIGHTS
from lightning_compress.share.codebook import Codebook

BITS = {"ternary": 2, "ttq": 2, "binary": 1}


def test_extremes_of_images_that_lie_channels_last_are_found_without_a_copy() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    with torch.profiler.profile() as profile:
        found = extremes(x)
    assert torch.equal(found, torch.stack([x.min(), x.max()]))
    assert not [event for event in profile.key_averages() if event.key in ("aten::clone", "aten::contiguous")]


def shared(mask: bool, length: int = 1) -> tuple[nn.Sequential, Any]:
    """A linear layer with a codebook, maybe under a mask."""
    net = nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 2))
    layer: Any = net[0]
    pruned = Mask.on(layer, "weight", (6, 12)) if mask else None
    if pruned is not None:
        pruned.mask.copy_(torch.rand(6, 12) > 0.4)
    centroids = torch.tensor([-0.31, -0.12, 0.05, 0.17, 0.29]) if length == 1 else 0.3 * torch.randn(5, length)
    book = Codebook((6, 12), nn.Parameter(centroids))
    book.share(layer.weight.detach())
    parametrize.register_parametrization(layer, "weight", book)
    if pruned is not None:
        parametrize.register_parametrization(layer, "weight", pruned)
    return net, layer


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_over_a_codebook_the_levels_are_quantized(name: str, mask: bool) -> None:
    net, layer = shared(mask)
    before = layer.parametrizations.weight[1 if mask else 0].codes
    Quantize(BITS.get(name, 4), None, weights=name, select="^0$").attach(net, None)
    stored = read_stored(net)["0.weight"]
    assert torch.equal(stored.value, layer.weight.detach())
    assert stored.levels is not None
    assert stored.scale is not None
    assert stored.codes is not None
    assert stored.levels.shape == (5,)
    assert stored.scale.dim() == 0
    assert stored.bits == 3
    assert torch.equal(stored.codes, before.int())  # the sharing is as it was
    if mask:
        assert stored.mask is not None
        assert not stored.value[~stored.mask].any()
        assert stored.value.count_nonzero() > 0
    if name in ("uniform", "lsq", "lsq_plus", "ternary"):
        assert torch.equal(stored.levels, stored.levels.round())  # whole multiples of one step
        assert float(stored.levels.abs().max()) <= 8


@pytest.mark.parametrize("name", WEIGHTS)
def test_over_a_codebook_of_blocks_the_levels_are_quantized(name: str) -> None:
    net, layer = shared(False, length=3)
    Quantize(BITS.get(name, 4), None, weights=name, select="^0$").attach(net, None)
    stored = read_stored(net)["0.weight"]
    assert torch.equal(stored.value, layer.weight.detach())
    assert stored.levels is not None
    assert stored.levels.shape == (5, 3)


def test_the_centroids_have_their_summed_gradient_through_the_quantizer() -> None:
    net, layer = shared(False)
    book = layer.parametrizations.weight[0]
    Quantize(8, None, select="^0$").attach(net, None)
    layer.weight.sum().backward()
    counts = torch.bincount(book.codes.flatten(), minlength=5).float()
    torch.testing.assert_close(book.centroids.grad, counts)


def test_rows_share_a_scale() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(rows(x, None), torch.arange(24.0))
    assert torch.equal(rows(x, 0), torch.arange(24.0).reshape(2, 12))
    assert torch.equal(rows(x, 1)[1], torch.tensor([4.0, 5, 6, 7, 16, 17, 18, 19]))


def test_mean_magnitude_leaves_zeros_out() -> None:
    assert mean_magnitude(torch.tensor([[0.0, -2.0, 4.0], [0.0, 0.0, -0.0]])).tolist() == [3.0, 0.0]
