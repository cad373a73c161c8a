import pytest

from lightning_compress.models.width import scaled


@pytest.mark.parametrize(
    ("channels", "width", "multiple", "expected"),
    [(50, 1, 1, 50), (50, 0.25, 1, 13), (16, 0.25, 4, 4), (16, 1.1, 4, 16), (16, 1.2, 4, 20), (64, 2, 4, 128)],
)
def test_rounds_to_the_nearest_multiple(channels: int, width: float, multiple: int, expected: int) -> None:
    assert scaled(channels, width, multiple) == expected


def test_never_reaches_zero() -> None:
    assert scaled(16, 1e-6) == 1
    assert scaled(16, 1e-6, multiple=4) == 4


@pytest.mark.parametrize("width", [0, -1.0])
def test_refuses_a_width_that_is_not_positive(width: float) -> None:
    with pytest.raises(ValueError, match="width must be greater than 0"):
        scaled(16, width)
