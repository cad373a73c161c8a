"""Random transforms of a whole batch of waveforms or of their features at once.

As in `data/augment.py`: functions `(batch, generator) -> batch` that keep shape and dtype, with random numbers drawn
on the generator's device.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class TimeShift:
    """Moves each waveform `[B, 1, 1, samples]` earlier or later by up to `share` of its length, silence filling up.

    Raises:
        ValueError: if `share` is not inside (0, 1].

    >>> waves = torch.arange(1, 5, dtype=torch.int16).view(1, 1, 1, 4)
    >>> TimeShift(0.5)(waves, Generator().manual_seed(0)).flatten().tolist()
    [3, 4, 0, 0]
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share of the waveform must be above 0 and at most 1, got {self.share}")

    def __call__(self, waves: Tensor, generator: Generator) -> Tensor:
        """Moves `waves`, each by its own number of samples."""
        most, length = round(self.share * waves.shape[-1]), waves.shape[-1]
        start = torch.randint(2 * most + 1, (len(waves),), generator=generator, device=generator.device)
        padded = torch.nn.functional.pad(waves, [most, most])
        windows = padded[:, 0, 0].unfold(1, length, 1)
        start = start.to(waves.device, non_blocking=True)
        return windows[torch.arange(len(waves), device=waves.device), start][:, None, None]


@final
@dataclass(frozen=True)
class Noise:
    """Adds white noise to each waveform int16 `[B, 1, 1, samples]`, `low` to `high` decibels below its mean power.

    One noise serves the whole batch, turned to another place for each waveform. Where silence surrounds a word, the
    mean power is that of all of it.

    Raises:
        ValueError: if `low` is above `high`.

    >>> Noise()(torch.full((1, 1, 1, 4), 1000, dtype=torch.int16), Generator().manual_seed(0)).dtype
    torch.int16
    """

    low: float = 10.0
    high: float = 40.0

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"noise is low to high decibels below the waveform, got low={self.low}, high={self.high}")

    def __call__(self, waves: Tensor, generator: Generator) -> Tensor:
        """Adds noise to `waves`, each at its own level."""
        count, length = len(waves), waves.shape[-1]
        noise = torch.randn(length, generator=generator, device=generator.device).to(waves.device)
        turn = torch.randint(length, (count, 1), generator=generator, device=generator.device).to(waves.device)
        drawn = torch.rand(count, 1, generator=generator, device=generator.device).to(waves.device)
        below = self.low + (self.high - self.low) * drawn
        own = waves[:, 0, 0].float()
        level = own.square().mean(1, keepdim=True).sqrt() * 10 ** (-below / 20)
        noisy: Tensor = own + level * noise[(turn + torch.arange(length, device=waves.device)) % length]
        return noisy.round().clamp(-32768, 32767).to(waves.dtype)[:, None, None]


@final
@dataclass(frozen=True)
class SpecAugment:
    """Hides `masks` stretches of up to `frames` frames, and as many of up to `bins` bins, of each sample.

    Features are `[B, 1, frames, bins]`; what is hidden becomes the sample's own mean in that bin. Park et al.,
    "SpecAugment", arXiv 1904.08779.

    Raises:
        ValueError: if a count is negative or all hide nothing; on a call, if a stretch may hide everything.

    >>> features = torch.arange(4.0).view(1, 1, 4, 1)
    >>> SpecAugment(frames=2, bins=0)(features, Generator().manual_seed(1)).flatten().tolist()
    [1.5, 1.5, 2.0, 3.0]
    """

    frames: int = 8
    bins: int = 2
    masks: int = 1

    def __post_init__(self) -> None:
        if min(self.frames, self.bins, self.masks) < 0 or not self.masks * (self.frames + self.bins):
            raise ValueError(f"SpecAugment must hide something, and no negative count of it; got {self}")

    def __call__(self, features: Tensor, generator: Generator) -> Tensor:
        """Hides stretches of `features`, each sample's own."""
        _, _, frames, bins = features.shape
        if self.frames >= frames or self.bins >= bins:
            raise ValueError(
                f"SpecAugment may hide {self.frames} frames and {self.bins} bins of {frames} and {bins}: lower them"
            )
        mean = features.mean(2, keepdim=True)
        for _ in range(self.masks):
            hidden = self._stretch(features, self.frames, frames, generator)[:, None, :, None]
            hidden = hidden | self._stretch(features, self.bins, bins, generator)[:, None, None, :]
            features = torch.where(hidden, mean, features)
        return features

    def _stretch(self, features: Tensor, longest: int, size: int, generator: Generator) -> Tensor:
        """Which of `size` places are hidden, bool `[B, size]`: a length from 0 to `longest`, then a place for it."""
        drawn = torch.rand(2, len(features), 1, generator=generator, device=generator.device)
        length, place = drawn.to(features.device)
        length = (length * (longest + 1)).floor()
        start = (place * (size - length + 1)).floor()
        at = torch.arange(size, device=features.device)
        hidden: Tensor = (at >= start) & (at < start + length)
        return hidden
