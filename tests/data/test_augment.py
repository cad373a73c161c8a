from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from lightning_compress.data.augment import Augment, Jitter, RandomCrop, RandomFlip

Pad = Callable[[Tensor], Tensor]


def _images(dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    images = torch.randint(1, 256, (9, 3, 7, 6), generator=Generator().manual_seed(1))
    return images.to(dtype).contiguous(memory_format=layout)


def _pad(mode: Any, width: int) -> Pad:
    def pad(images: Tensor) -> Tensor:
        return torch.from_numpy(np.pad(images.numpy(), [(0, 0), (0, 0), (width, width), (width, width)], mode=mode))

    return pad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("transform", "pad", "width"),
    [
        (RandomCrop(2), _pad("constant", 2), 2),
        (RandomCrop(4), _pad("constant", 4), 4),
        (RandomCrop(5, mode="reflect"), _pad("reflect", 5), 5),
        (Jitter(3), _pad("edge", 3), 3),
    ],
)
def test_windows_equal_a_loop_over_samples(
    transform: Augment, pad: Pad, width: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    images = _images(dtype, layout)
    result = transform(images, Generator().manual_seed(5))
    corners = torch.randint(2 * width + 1, (2, 9), generator=Generator().manual_seed(5)).T.tolist()
    assert len({tuple(corner) for corner in corners}) > 5
    for image, (top, left), got in zip(pad(images), corners, result, strict=True):
        assert torch.equal(got, image[:, top : top + 7, left : left + 6])
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flip_equals_a_loop_over_samples(layout: torch.memory_format) -> None:
    images = _images(torch.uint8, layout)
    result = RandomFlip(0.4)(images, Generator().manual_seed(2))
    flipped = (torch.rand(9, generator=Generator().manual_seed(2)) < 0.4).tolist()
    assert {True, False} == set(flipped)
    for image, flip, got in zip(images, flipped, result, strict=True):
        rows = [[list(row)[::-1] if flip else list(row) for row in channel] for channel in image.tolist()]
        assert got.tolist() == rows
    assert result.is_contiguous(memory_format=layout)


def test_every_place_is_equally_likely() -> None:
    images = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    images[:, :, 1, 1] = 1
    moved = RandomCrop(1)(images, Generator().manual_seed(0))
    share = moved.double().mean((0, 1))
    # the centre lands on each of 9 pixels: 1000 +- 5 standard deviations of a binomial
    assert torch.allclose(share, torch.full((3, 3), 1 / 9, dtype=torch.double), atol=5 * (8 / 81 / 9000) ** 0.5)


def test_flip_rate_is_p() -> None:
    images = torch.tensor([0, 1]).view(1, 1, 1, 2).expand(10000, 1, 1, 2)
    rate = RandomFlip(0.3)(images, Generator().manual_seed(0))[:, 0, 0, 0].double().mean()
    assert abs(rate - 0.3) < 5 * (0.21 / 10000) ** 0.5


@pytest.mark.parametrize("transform", [RandomCrop(2), RandomCrop(2, "reflect"), Jitter(2), RandomFlip()])
def test_only_the_given_generator_is_used(transform: Augment) -> None:
    images = _images(torch.uint8, torch.contiguous_format)
    before, kept = torch.random.get_rng_state(), images.clone()
    first, again, other = (transform(images, Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, kept)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "at least 1 pixel, got 0"),
        (lambda: RandomCrop(1, mode="mirror"), "'zeros' or 'reflect', got 'mirror'"),  # type: ignore[arg-type]
        (lambda: Jitter(0), "at least 1, got 0"),
        (lambda: RandomFlip(0.0), "above 0 and at most 1, got 0.0"),
        (lambda: RandomFlip(1.5), "above 0 and at most 1, got 1.5"),
        (lambda: RandomCrop(6, "reflect")(torch.zeros(1, 1, 7, 6), Generator()), r"reflecting 6 pixels.*\[7, 6\]"),
    ],
)
def test_impossible_settings_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
