"""Random transforms of a whole batch of images at once, on whatever device the batch is.

Every transform is a function `(images, generator) -> images` on `[B, C, H, W]` images of any dtype, before
normalisation, and keeps shape, dtype and memory format. The few random numbers are drawn on the generator's
device (the CPU in the loaders), so a run sees the same images on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Generator, Tensor
from torch.nn import functional

Augment = Callable[[Tensor, Generator], Tensor]


@final
@dataclass(frozen=True)
class RandomCrop:
    """Pads every side by `padding` pixels and cuts a window of the original size at a random place.

    `mode` is what the border holds: `zeros`, or `reflect` (mirror without repeating the edge).
    Lee et al., "Deeply-Supervised Nets", 2015.

    Raises:
        ValueError: if `padding` is below 1, the mode is unknown, or a reflection is wider than the image.

    >>> images = torch.arange(9.0).view(1, 1, 3, 3)
    >>> RandomCrop(1)(images, Generator().manual_seed(0)).shape
    torch.Size([1, 1, 3, 3])
    """

    padding: int
    mode: Literal["zeros", "reflect"] = "zeros"

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise ValueError(f"padding must be at least 1 pixel, got {self.padding}")
        if self.mode not in ("zeros", "reflect"):
            raise ValueError(f"mode must be 'zeros' or 'reflect', got {self.mode!r}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Crops `images` `[B, C, H, W]`, each at its own place."""
        if self.mode == "zeros":
            return _random_window(functional.pad(images, [self.padding] * 4), images, generator)
        if self.padding >= min(images.shape[2:]):
            raise ValueError(
                f"reflecting {self.padding} pixels needs images larger than that, got {list(images.shape[2:])}"
            )
        return _random_window(_pad(images, self.padding, "reflect"), images, generator)


@final
@dataclass(frozen=True)
class Jitter:
    """Moves each image by up to `pixels` in both directions; the border repeats the edge.

    Raises:
        ValueError: if `pixels` is below 1.

    >>> images = torch.ones(1, 1, 3, 3)
    >>> torch.equal(Jitter(2)(images, Generator()), images)
    True
    """

    pixels: int

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"pixels must be at least 1, got {self.pixels}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Moves `images` `[B, C, H, W]`, each by its own offset."""
        return _random_window(_pad(images, self.pixels, "replicate"), images, generator)


@final
@dataclass(frozen=True)
class RandomFlip:
    """Mirrors each image left to right with probability `p`.

    Raises:
        ValueError: if `p` is not inside (0, 1].

    >>> RandomFlip(1.0)(torch.arange(3.0).view(1, 1, 1, 3), Generator()).flatten().tolist()
    [2.0, 1.0, 0.0]
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"p must be above 0 and at most 1, got {self.p}")

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Flips some of `images` `[B, C, H, W]`."""
        drawn = torch.rand(len(images), generator=generator, device=generator.device) < self.p
        flip = drawn.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
        return torch.where(flip, images.flip(-1), images)


def _random_window(padded: Tensor, images: Tensor, generator: Generator) -> Tensor:
    """A window of the size of `images` from each of `padded`, every place equally likely."""
    count, _, height, width = images.shape
    places = padded.shape[2] - height + 1
    corner = torch.randint(places, (2, count), generator=generator, device=generator.device)
    top, left = corner.to(images.device, non_blocking=True)
    # A strided view of all windows: only the chosen ones are ever copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def _pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """Pads through floats, which hold a uint8 exactly: torch reflects and replicates no uint8."""
    floats = images if images.is_floating_point() else images.float()
    return functional.pad(floats, [padding] * 4, mode=mode).to(images.dtype)
