"""How a width multiplier turns into a channel count."""


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Scale a channel count and round it to the nearest positive multiple.

    Args:
        channels: count of the architecture as published (width 1).
        width: factor, greater than zero.
        multiple: the result is a multiple of it; 4 keeps vector units and halving stages happy.

    Raises:
        ValueError: when `width` is not positive.

    >>> scaled(50, 0.5), scaled(16, 0.3, multiple=4), scaled(16, 0.01, multiple=4)
    (25, 4, 4)
    """
    if width <= 0:
        raise ValueError(f"width must be greater than 0, got {width}; 1.0 is the published architecture")
    return max(1, int(channels * width / multiple + 0.5)) * multiple
