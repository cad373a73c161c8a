"""What a network hears: log-mel energies or cepstral coefficients of a waveform, on whatever device it is."""

import functools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

_FULL_SCALE = 32768.0


@final
@dataclass(frozen=True)
class Features:
    """Maps waveforms int16 `[B, 1, 1, samples]` to float32 `[B, 1, frames, mels]`, or `[B, 1, frames, coefficients]`.

    Power spectra of Hann windows are summed by triangles that are even on the mel scale (O'Shaughnessy, "Speech
    Communication", 1987: 2595 log10(1 + f / 700)), and an energy becomes log(1 + energy / floor), so that silence is 0.
    `coefficients` are the first of their orthonormal discrete cosine transform (Davis and Mermelstein, "Comparison of
    parametric representations", 1980). The defaults of window, stride, triangles and range are those of Zhang et al.,
    "Hello Edge", arXiv 1711.07128, which takes 10 coefficients.

    Args:
        rate: samples in a second.
        window: seconds in a window.
        stride: seconds from window to window.
        mels: number of triangles.
        coefficients: of the cosine transform; None for the log-mel energies themselves.
        low: lowest frequency in Hz.
        high: highest frequency in Hz; half the rate if that is lower.
        floor: the energy below which differences fade, as in a quiet room; a sine of full scale has about 1/4.

    Raises:
        ValueError: if the numbers contradict each other, or a triangle is too narrow for the window.

    >>> Features(8000, coefficients=10)(torch.zeros(2, 1, 1, 8000, dtype=torch.int16)).shape
    torch.Size([2, 1, 49, 10])
    """

    rate: int
    window: float = 0.04
    stride: float = 0.02
    mels: int = 40
    coefficients: int | None = None
    low: float = 20.0
    high: float = 4000.0
    floor: float = 1e-9

    def __post_init__(self) -> None:
        right = {
            "window and stride of a sample or more": min(self._samples) >= 1,
            "low from 0 up and below high": 0 <= self.low < self.high,
            "low below half the rate": self.low < self.rate / 2,
            "floor above 0": self.floor > 0,
            "mels of 1 or more": self.mels >= 1,
            "coefficients from 1 to mels, or null": self.coefficients is None or 1 <= self.coefficients <= self.mels,
        }
        for expected, holds in right.items():
            if not holds:
                raise ValueError(f"features need {expected}, got {self}")
        empty = int((_triangles(self).amax(dim=0) == 0).sum())
        if empty:
            raise ValueError(
                f"{empty} of {self.mels} mel triangles lie between two frequencies of a window of {self.window} s: "
                "lower mels or lengthen window"
            )

    @property
    def _samples(self) -> tuple[int, int]:
        return round(self.window * self.rate), round(self.stride * self.rate)

    def __call__(self, waves: Tensor, generator: Generator | None = None) -> Tensor:
        """Features of `waves`; the generator is left alone, so that this may stand among random transforms.

        Raises:
            ValueError: if a waveform is shorter than a window.
        """
        (window, stride), samples = self._samples, waves.shape[-1]
        if samples < window:
            raise ValueError(f"a window of {window} samples needs a waveform as long, got {samples}: raise seconds")
        frames = (waves[:, 0, 0].float() / _FULL_SCALE).unfold(1, window, stride)
        hann, triangles, cosines = _tables(self, waves.device)
        energies = torch.fft.rfft(frames * hann).abs().square() @ triangles
        logarithms: Tensor = (energies / self.floor).log1p()
        return (logarithms if cosines is None else logarithms @ cosines).unsqueeze(1)


@functools.lru_cache(8)
def _tables(features: Features, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Window `[samples]`, triangles `[frequencies, mels]` and cosines `[mels, coefficients]`, float32 on the device."""
    window = torch.hann_window(features._samples[0], dtype=torch.float64)
    # By its sum, so that energies do not depend on how many samples a window has.
    tables = window / window.sum(), _triangles(features), _cosines(features)
    hann, triangles, cosines = (None if table is None else table.to(device, torch.float32) for table in tables)
    assert hann is not None
    assert triangles is not None
    return hann, triangles, cosines


def _triangles(features: Features) -> Tensor:
    """Weight of every frequency of a window in every energy, float64 `[frequencies, mels]`."""
    window, rate = features._samples[0], features.rate
    frequencies = _mel(torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window)[:, None]
    ends = _mel(torch.tensor([features.low, min(features.high, rate / 2)], dtype=torch.float64))
    corners = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, features.mels + 2, dtype=torch.float64))
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def _mel(frequency: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + frequency / 700)


def _cosines(features: Features) -> Tensor | None:
    """Orthonormal cosines of the second kind, float64 `[mels, coefficients]`."""
    if features.coefficients is None:
        return None
    place = (torch.arange(features.mels, dtype=torch.float64) + 0.5)[:, None]
    order = torch.arange(features.coefficients, dtype=torch.float64)
    scale = torch.where(order == 0, 1.0, math.sqrt(2)) / math.sqrt(features.mels)
    return torch.cos(math.pi / features.mels * place * order) * scale
