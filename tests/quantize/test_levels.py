import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_compress.core.stored import Stored
from lightning_compress.quantize import levels
from lightning_compress.quantize.levels import PowersOfTwo

#: Sets of terms as the authors' code lists them (yhhhli/APoT_Quantization, quant_layer.py), by bits of the magnitude.
SETS = {
    2: ([0, 2**-1, 2**-2, 2**-3],),
    3: ([0, 2**-1, 2**-2, 2**-4], [0, 2**-3]),
    4: ([0, 2**-1, 2**-3, 2**-5], [0, 2**-2, 2**-4, 2**-6]),
    5: ([0, 2**-1, 2**-3, 2**-6], [0, 2**-2, 2**-4, 2**-7], [0, 2**-5]),
}


@pytest.mark.parametrize("bits", SETS)
def test_additive_levels_are_those_of_the_authors(bits: int) -> None:
    sums = np.zeros(1)
    for terms in SETS[bits]:
        sums = np.add.outer(sums, np.array(terms)).ravel()
    assert len(np.unique(sums)) == 2**bits
    np.testing.assert_allclose(levels.sums_of_powers(bits).numpy(), np.sort(sums) / sums.max(), rtol=1e-6)


def test_one_bit_of_magnitude_is_ternary() -> None:
    assert levels.sums_of_powers(1).tolist() == levels.powers(1).tolist() == [0.0, 1.0]


def test_single_powers() -> None:
    assert levels.powers(3).tolist() == [0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


def nearest(w: Tensor, magnitudes: Tensor) -> Tensor:
    return magnitudes[(w.abs().clamp(max=1)[..., None] - magnitudes).abs().argmin(-1)] * w.sign()


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_values_and_gradients_are_the_papers(bits: int, additive: bool) -> None:
    w, upstream = torch.randn(20, 9).requires_grad_(), torch.randn(20, 9)
    quantizer = PowersOfTwo(bits, additive=additive)
    quantizer.start(w.detach())
    torch.testing.assert_close(quantizer.alpha.detach(), 3 * w.detach().std(correction=0))
    with torch.no_grad():
        quantizer.alpha.fill_(1.3)
    out = quantizer(w)
    out.backward(upstream)
    place = w.detach() / 1.3
    magnitudes = (levels.sums_of_powers if additive else levels.powers)(bits - 1)
    level = nearest(place, magnitudes)
    torch.testing.assert_close(out.detach(), 1.3 * level)
    assert torch.equal(w.grad, upstream)  # type: ignore[arg-type]
    slope = torch.where(place.abs() > 1, place.sign(), level - place)
    torch.testing.assert_close(quantizer.alpha.grad, (upstream * slope).sum(), rtol=1e-4, atol=1e-5)
    stored = quantizer.store(Stored(w.detach()))
    assert stored.levels is not None
    assert len(stored.levels) == 2**bits - 1
    assert torch.equal(stored.levels, -stored.levels.flip(0))


def test_normalized_weights() -> None:
    w, upstream = (0.2 * torch.randn(20, 9) + 0.1).requires_grad_(), torch.randn(20, 9)
    quantizer = PowersOfTwo(4, normalize=True)
    quantizer.start(w.detach())
    assert float(quantizer.alpha.detach()) == 3.0
    normal = (w.detach() - w.detach().mean()) / w.detach().std()
    out = quantizer(w)
    torch.testing.assert_close(out.detach(), 3 * nearest(normal / 3, levels.sums_of_powers(3)))
    out.backward(upstream)
    torch.testing.assert_close(w.grad, upstream / w.detach().std())  # statistics are constants, as in the authors' code
    assert not quantizer.exact_zero
    assert PowersOfTwo(4).exact_zero


def test_bits_change_the_levels_in_place() -> None:
    w = torch.randn(50)
    quantizer = PowersOfTwo(6)
    quantizer.start(w)
    for bits in (2, 5, 3):
        quantizer.set_bits(bits)
        fresh = PowersOfTwo(bits)
        fresh.start(w)
        assert torch.equal(quantizer(w), fresh(w))
