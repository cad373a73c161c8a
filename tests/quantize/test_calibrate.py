import numpy as np
import pytest
import torch
from scipy.stats import entropy as relative_entropy
from torch import Tensor
from torch.ao.quantization.observer import HistogramObserver, MovingAverageMinMaxObserver

from lightning_compress.quantize import affine, calibrate
from lightning_compress.quantize.seen import Seen

BINS = 2048


def seen_of(*batches: Tensor, bins: int = BINS) -> Seen:
    x = torch.cat(batches).double()
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    ends = torch.stack([torch.stack([b.min(), b.max()]) for b in batches]).double()
    counts, _ = np.histogram(x.numpy(), bins=bins, range=(low, high))
    return Seen(ends, torch.from_numpy(counts).double(), low, high)


def heavy(signed: bool, number: int = 20000) -> Tensor:
    """Numbers with a long tail, as activations have."""
    x = torch.distributions.StudentT(4.0).sample((number,))
    return x if signed else x.relu()


def loss(x: Tensor, low: float, high: float, top: int) -> float:
    scale, zero = affine.affine_scale(torch.tensor(low), torch.tensor(high), top)
    return float(((affine.codes(x, scale, zero, 0, top) - zero) * scale - x).square().mean())


def test_min_max_is_the_widest_batch() -> None:
    assert calibrate.min_max(seen_of(torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 1.0])), 255) == (-3.0, 2.0)


def test_moving_average_is_that_of_torch() -> None:
    batches = [torch.randn(100) * (i + 1) for i in range(5)]
    observer = MovingAverageMinMaxObserver(averaging_constant=0.1)
    for batch in batches:
        observer(batch)
    found = calibrate.moving_average(seen_of(*batches), 255)
    assert found == pytest.approx((float(observer.min_val), float(observer.max_val)), rel=1e-5)


@pytest.mark.parametrize("signed", [True, False])
def test_percentile_leaves_a_ten_thousandth_at_either_end_up_to_a_bin(signed: bool) -> None:
    x = heavy(signed).double()
    seen = seen_of(x)
    low, high = calibrate.percentile(seen, 255)
    bit = 1e-9 * seen.width
    for beyond, more in (
        ((x > high + bit), (x > high - seen.width - bit)),
        ((x < low - bit), (x < low + seen.width + bit)),
    ):
        assert beyond.double().mean() <= 1.0001e-4 <= more.double().mean() + 1e-6
    assert high < 0.9 * float(x.max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_mse_is_at_least_as_near_as_torchs_histogram_observer(bits: int, signed: bool) -> None:
    x, top = heavy(signed), 2**bits - 1
    observer = HistogramObserver(bins=BINS, dtype=torch.quint8, quant_min=0, quant_max=top)
    observer(x)
    scale, zero = observer.calculate_qparams()
    theirs = float((torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), 0, top) - x).square().mean())
    ours = loss(x, *calibrate.mse(seen_of(x), top), top)
    assert ours <= 1.02 * theirs
    assert ours <= loss(x, float(x.min()), float(x.max()), top)


def test_mse_is_the_best_of_its_candidates_on_the_numbers_themselves() -> None:
    x, top = heavy(True), 15
    low, high = calibrate.mse(seen_of(x), top)
    every = [loss(x, float(x.min()) * i / 128, float(x.max()) * i / 128, top) for i in range(1, 129)]
    assert loss(x, low, high, top) <= 1.01 * min(every)


def literal_entropy(counts: list[float], levels: int, lengths: list[int]) -> int:
    """TensorRT's calibration word for word, for one-sided histograms: how many bins are kept."""
    counts = [counts[1], *counts[1:]]
    divergences = {}
    for length in lengths:
        reference = counts[:length]
        reference[-1] += sum(counts[length:])
        candidate = [0.0] * length
        for level in range(levels):
            members = [i for i in range(length) if i * levels // length == level]
            used = [i for i in members if counts[i] > 0]
            for i in used:
                candidate[i] = sum(counts[j] for j in members) / len(used)
        divergences[length] = float(relative_entropy(reference, candidate))
    return min(divergences, key=lambda length: divergences[length])


@pytest.mark.parametrize("bits", [4, 6])
def test_entropy_is_tensorrts_word_for_word(bits: int) -> None:
    seen = seen_of(heavy(False), bins=256)
    low, high = calibrate.entropy(seen, 2**bits - 1)
    lengths = [step * 2 for step in range(1, 129) if step * 2 >= 2**bits]
    kept = literal_entropy(seen.counts.tolist(), 2**bits, lengths)
    assert (low, high) == pytest.approx((0.0, kept * seen.width))
    assert kept < 256


def test_entropy_keeps_zero_where_it_is() -> None:
    seen = seen_of(heavy(True))
    low, high = calibrate.entropy(seen, 15)
    assert seen.low < low < 0.0 < high < seen.high
    assert low / seen.low == pytest.approx(high / seen.high, abs=0.01)


def test_merging_as_on_nvidias_slide() -> None:
    # S. Migacz, "8-bit inference with TensorRT", GTC 2017: eight bins in two.
    reference = torch.tensor([1.0, 0.0, 2.0, 3.0, 5.0, 3.0, 1.0, 7.0])
    assert calibrate._merged(reference, 2).tolist() == [2.0, 0.0, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0]


def test_divergence_is_that_of_scipy() -> None:
    p, q = torch.rand(20).double(), torch.rand(20).double() + 0.1
    p[3] = 0.0
    assert calibrate._divergence(p, q) == pytest.approx(float(relative_entropy(p.numpy(), q.numpy())), rel=1e-12)
    q[5] = 0.0
    assert calibrate._divergence(p, q) == float("inf")
