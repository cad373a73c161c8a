import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from lightning_compress.distill.adapters import negative_mean


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.7, -0.5), (-3.0, 0.1), (2.0, 0.3)])
def test_negative_mean_is_the_integral(mean: float, deviation: float) -> None:
    normal = norm(mean, abs(deviation))
    share, low = normal.cdf(0.0), min(0.0, mean) - 12 * abs(deviation)
    expected = quad(lambda x: x * normal.pdf(x) / share, low, 0.0, points=[min(mean, 0.0)], epsabs=1e-13)[0]
    found = negative_mean(torch.tensor([mean]), torch.tensor([deviation]))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_negative_mean_of_a_channel_that_is_never_negative_is_zero_or_below() -> None:
    assert -1e-2 < float(negative_mean(torch.tensor([50.0]), torch.tensor([0.5]))) < 0.0
    assert float(negative_mean(torch.tensor([0.0]), torch.tensor([0.0]))) == pytest.approx(0.0, abs=1e-9)
