"""Mean and standard deviation of a data set, and how they are applied."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from lightning_compress.data.samples import Part

Statistic = Literal["auto"] | float | Sequence[float]


@final
@dataclass(frozen=True)
class Normalize:
    """Maps stored pixels to `(pixel * pixel_scale - mean) / std` per channel, float32.

    Token ids, int64, are names and not amounts: they stay as they are.

    >>> normalize = Normalize((0.5,), (0.25,), 1 / 255)
    >>> [round(v, 4) for v in normalize(torch.tensor([0, 255]).byte().view(2, 1, 1, 1)).flatten().tolist()]
    [-2.0, 2.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_scale: float

    def __call__(self, images: Tensor) -> Tensor:
        """Normalises `images` `[B, C, H, W]` of any dtype, and leaves token ids alone."""
        if images.dtype == torch.int64:
            return images
        scale, shift = self.affine(images[:1])
        return images.float() * scale + shift

    def affine(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and offset of every pixel, shaped and laid out like `image` `[1, C, H, W]`.

        Spelled out per pixel because a broadcast over channels-last memory runs several times slower.
        """
        mean = torch.tensor(self.mean, dtype=torch.float64).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float64).view(1, -1, 1, 1)
        blank = torch.zeros_like(image, dtype=torch.float32)
        scale = (self.pixel_scale / std).to(blank.device, torch.float32)
        shift = (-mean / std).to(blank.device, torch.float32)
        return blank + scale, blank + shift


def normalization(part: Part, mean: Statistic, std: Statistic) -> Normalize:
    """How to normalise `part`; `auto` is measured on it, a single number holds for all channels.

    uint8 pixels are scaled to 0..1 first, and mean and std are in those units; floats are taken as they are.

    Raises:
        ValueError: if the number of values is not the number of channels, or a std is not positive.

    >>> from lightning_compress.data.samples import Samples
    >>> part = Samples(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), ["a", "b"])
    >>> normalization(part, "auto", 2.0)
    Normalize(mean=(0.5,), std=(2.0,), pixel_scale=1.0)
    """
    first = part.fetch(torch.tensor([0]))
    if first.dtype == torch.int64:
        return Normalize((), (), 1.0)
    pixel_scale = 1 / 255 if first.dtype == torch.uint8 else 1.0
    if mean == "auto" or std == "auto":
        measured_mean, measured_std = channel_statistics(part)
        mean = (measured_mean * pixel_scale).tolist() if mean == "auto" else mean
        std = (measured_std * pixel_scale).tolist() if std == "auto" else std
    channels = first.shape[1]
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    if min(stds) <= 0:
        raise ValueError(f"std must be positive in every channel, got {list(stds)}; a constant channel needs std=")
    return Normalize(means, stds, pixel_scale)


def channel_statistics(part: Part, *, chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each channel in stored units, float64 `[C]`.

    >>> from lightning_compress.data.samples import Samples
    >>> part = Samples(torch.tensor([0.0, 4.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), ["a", "b"])
    >>> [value.item() for value in channel_statistics(part)]
    [2.0, 2.0]
    """
    total, squares, pixels = torch.zeros(()), torch.zeros(()), 0
    for index in torch.split(torch.arange(len(part.labels)), chunk):
        images = part.fetch(index).double()
        total = total + images.sum((0, 2, 3))
        squares = squares + images.square().sum((0, 2, 3))
        pixels += images[:, 0].numel()
    mean = total / pixels
    return mean, (squares / pixels - mean.square()).clamp(min=0).sqrt()


def _per_channel(name: str, value: Statistic, channels: int) -> tuple[float, ...]:
    if isinstance(value, str):
        raise ValueError(f"{name} must be 'auto', a number or one number per channel, got {value!r}")
    values = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),) * channels
    if len(values) != channels:
        raise ValueError(f"{name} needs {channels} values, one per channel, got {list(values)}")
    return values
