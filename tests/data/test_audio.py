"""Clips, features and transforms of waveforms, against numpy, scipy and loops."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy.fft import dct
from scipy.signal.windows import hann
from torch import Generator, Tensor

from lightning_compress.data.audio_augment import Noise, SpecAugment, TimeShift
from lightning_compress.data.clip import Clip
from lightning_compress.data.features import Features


def _wave(samples: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(seed).integers(-32768, 32768, samples, dtype=np.int16)


def _cell(wave: np.ndarray[Any, Any], rate: int = 8000, **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", **options)
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("samples", [8000, 7000, 7001, 1])
def test_short_clips_stand_between_silences(samples: int) -> None:
    wave = _wave(samples)
    got = Clip(8000)(_cell(wave))
    assert got.shape == (1, 1, 8000)
    before = (8000 - samples) // 2
    assert np.array_equal(got[0, 0, before : before + samples], wave)
    assert np.count_nonzero(got) == np.count_nonzero(wave)


def test_of_a_long_clip_the_middle_is_kept() -> None:
    wave = _wave(1003)
    assert np.array_equal(Clip(8000, 0.1)(_cell(wave))[0, 0], wave[101:901])


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24"])
def test_other_sample_formats_are_scaled(subtype: str) -> None:
    wave = _wave(8000)
    got = Clip(8000)(_cell(wave / 32768, subtype=subtype))
    assert np.array_equal(got[0, 0], wave)


def test_a_path_serves_as_well_as_bytes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", _wave(8000), 8000)
    assert np.array_equal(Clip(8000)({"bytes": None, "path": str(tmp_path / "a.flac")})[0, 0], _wave(8000))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "is empty"),
        ([1, 2], "is no audio file, but list"),
        ({"bytes": b"junk", "path": None}, "is no readable audio"),
        (_cell(_wave(10), rate=16000), "has 16000 Hz and 1 channels, expected 8000 Hz and 1: convert it"),
        (_cell(_wave(10).reshape(5, 2)), "has 8000 Hz and 2 channels"),
    ],
)  # fmt: skip
def test_unusable_cells_are_named(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clip(8000)(cell)


def test_a_clip_has_a_length() -> None:
    with pytest.raises(ValueError, match=r"rate in Hz and seconds above 0, got rate=8000 and seconds=0.0"):
        Clip(8000, 0.0)


def _log_mel(wave: np.ndarray[Any, Any], features: Features) -> np.ndarray[Any, Any]:
    """Log-mel energies `[frames, mels]` by numpy, frame by frame and triangle by triangle."""
    length, stride = round(features.window * features.rate), round(features.stride * features.rate)
    window = hann(length, sym=False)
    frames = np.stack([wave[at : at + length] / 32768 for at in range(0, len(wave) - length + 1, stride)])
    powers = np.abs(np.fft.rfft(frames * window / window.sum())) ** 2
    bottom, top = (2595 * np.log10(1 + f / 700) for f in (features.low, min(features.high, features.rate / 2)))
    edges = np.linspace(bottom, top, features.mels + 2)
    mels = 2595 * np.log10(1 + np.fft.rfftfreq(length, 1 / features.rate) / 700)
    triangles = [np.interp(mels, edges[at : at + 3], [0, 1, 0], left=0, right=0) for at in range(features.mels)]
    energies: np.ndarray[Any, Any] = powers @ np.stack(triangles, axis=1)
    return np.log(1 + energies / features.floor)


SETTINGS = [
    Features(8000),
    Features(16000),
    Features(8000, window=0.032, stride=0.01, mels=20, low=100, high=3000, floor=1e-6),
]


@pytest.mark.parametrize("features", SETTINGS, ids=["8 kHz", "16 kHz", "others"])
def test_features_equal_numpy_and_scipy(features: Features) -> None:
    waves = np.stack([_wave(features.rate), _wave(features.rate, 1) // 100])
    inputs = torch.from_numpy(waves)[:, None, None]
    energies = np.stack([_log_mel(wave, features) for wave in waves])
    np.testing.assert_allclose(features(inputs)[:, 0], energies, rtol=1e-3, atol=1e-3)
    cepstral = replace(features, coefficients=10)(inputs)
    np.testing.assert_allclose(cepstral[:, 0], dct(energies, norm="ortho")[..., :10], rtol=1e-3, atol=5e-3)


def test_silence_is_zero_and_a_tone_is_where_it_should_be() -> None:
    time = torch.arange(8000) / 8000
    tone = (32767 * torch.sin(2 * torch.pi * 1000 * time)).short()
    heard = Features(8000)(torch.stack([tone, torch.zeros_like(tone)])[:, None, None])
    assert heard[1].abs().max() == 0
    # On the mel scale 1 kHz is at 1000, between 31.7 at 20 Hz and 2146 at 4 kHz: 0.458 of the way, 18.8 of 41 steps.
    assert (heard[0, 0].argmax(dim=1) == 18).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0.0}, "window and stride of a sample or more, got Features.*stride=0.0"),
        ({"low": 5000.0}, "low from 0 up and below high"),
        ({"low": 4000.0, "high": 5000.0}, "low below half the rate"),
        ({"floor": 0.0}, "floor above 0"),
        ({"mels": 0}, "mels of 1 or more"),
        ({"coefficients": 41}, "coefficients from 1 to mels"),
        ({"mels": 200}, r"of 200 mel triangles lie between two frequencies .* lower mels or lengthen window"),
    ],
)
def test_impossible_features_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(8000, **settings)


def test_a_waveform_must_hold_a_window() -> None:
    with pytest.raises(ValueError, match="a window of 320 samples needs a waveform as long, got 319"):
        Features(8000)(torch.zeros(1, 1, 1, 319, dtype=torch.int16))


def _waves() -> Tensor:
    return torch.from_numpy(_wave(6 * 500).reshape(6, 1, 1, 500) // 10)


def test_shifts_equal_a_loop() -> None:
    waves = _waves()
    shifted = TimeShift(0.1)(waves, Generator().manual_seed(3))
    starts = torch.randint(101, (6,), generator=Generator().manual_seed(3)).tolist()
    assert len(set(starts)) > 3
    for one, own, start in zip(waves, shifted, starts, strict=True):
        assert torch.equal(own[0, 0], torch.nn.functional.pad(one[0, 0], (50, 50))[start : start + 500])


def test_noise_has_the_level_asked_for() -> None:
    waves = _waves().repeat(50, 1, 1, 8)
    noisy = Noise(20.0, 20.0)(waves, Generator().manual_seed(0))
    assert noisy.dtype == torch.int16
    added = (noisy.double() - waves.double()).square().mean(dim=-1)
    ratio = 10 * torch.log10(waves.double().square().mean(dim=-1) / added)
    assert (ratio - 20).abs().max() < 0.5
    spread = Noise(10.0, 40.0)(waves, Generator().manual_seed(0)).double() - waves
    levels = 10 * torch.log10(waves.double().square().mean(dim=-1) / spread.square().mean(dim=-1)).flatten()
    assert levels.min() < 14
    assert levels.max() > 36


def test_loud_noise_is_clipped_not_wrapped() -> None:
    waves = torch.full((1, 1, 1, 500), 32767, dtype=torch.int16)
    assert (Noise(10.0, 10.0)(waves, Generator().manual_seed(0)) > 0).all()


def test_masks_hide_stretches_by_the_mean() -> None:
    features = torch.randn(200, 1, 20, 10, generator=Generator().manual_seed(0))
    masked = SpecAugment(frames=5, bins=3)(features, Generator().manual_seed(0))
    hidden = masked != features
    assert torch.equal(masked[hidden], features.mean(2, keepdim=True).expand_as(features)[hidden])
    frames, bins = hidden.all(dim=3).sum((1, 2)), hidden.all(dim=2).sum((1, 2))
    assert set(frames.tolist()) == set(range(6))
    assert set(bins.tolist()) == set(range(4))
    assert torch.equal(hidden.sum((1, 2, 3)), frames * 10 + bins * 20 - frames * bins)


@pytest.mark.parametrize("transform", [TimeShift(), Noise(), SpecAugment(frames=3)], ids=lambda one: type(one).__name__)
def test_transforms_are_the_generators_alone(transform: Any) -> None:
    batch = torch.randn(6, 1, 20, 10) if isinstance(transform, SpecAugment) else _waves()
    before = torch.random.get_rng_state()
    first, again, other = (transform(batch, Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.shape, first.dtype) == (batch.shape, batch.dtype)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeShift(0.0), "share of the waveform must be above 0 and at most 1, got 0.0"),
        (lambda: Noise(20.0, 10.0), "got low=20.0, high=10.0"),
        (lambda: SpecAugment(0, 0), "must hide something"),
        (lambda: SpecAugment(20)(torch.zeros(1, 1, 20, 10), Generator()), "may hide 20 frames and 2 bins of 20 and 10"),
    ],
)
def test_impossible_transforms_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
