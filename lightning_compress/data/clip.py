"""From what one cell of a table holds to a waveform of fixed length."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

_LARGEST = 32767


@final
@dataclass(frozen=True)
class Clip:
    """Makes every audio file a waveform int16 `[1, 1, length]`: silence around a short one, a long one's middle.

    A cell is `{"bytes": ..., "path": ...}`, one channel in any format that libsndfile knows.

    Raises:
        ValueError: if `rate` or `seconds` is not positive; on a call, if the cell is no audio of that rate.

    >>> Clip(rate=8000, seconds=0.5).fit(np.ones(3999, dtype=np.int16))[:, :, :2].tolist()
    [[[1, 1]]]
    """

    kind: ClassVar[str] = "audio"
    argument: ClassVar[str] = "audio_column"

    rate: int
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.rate < 1 or self.length < 1:
            raise ValueError(
                f"a clip needs rate in Hz and seconds above 0, got rate={self.rate} and seconds={self.seconds}"
            )

    @property
    def length(self) -> int:
        """Samples in a waveform."""
        return round(self.rate * self.seconds)

    def __call__(self, cell: Any) -> NDArray[np.int16]:
        """Decodes one cell and cuts or fills it to length."""
        if not isinstance(cell, dict):
            raise ValueError("is empty" if cell is None else f"is no audio file, but {type(cell).__name__}")
        return self.fit(self.decode(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]))

    def decode(self, file: io.BytesIO | str | Path) -> NDArray[np.int16]:
        """The whole waveform of a file, int16 `[samples]`.

        Raises:
            ImportError: if soundfile is not installed.
            ValueError: if it is no audio, has another rate, or several channels.
        """
        try:
            import soundfile
        except (ModuleNotFoundError, OSError) as error:
            raise ImportError(f"audio needs the soundfile library: pip install soundfile ({error})") from error
        try:
            # As floats, since integers would not be scaled where the file holds floats; int16 comes back exactly.
            wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"is no readable audio ({error})") from error
        if rate != self.rate or wave.shape[1] != 1:
            raise ValueError(
                f"has {rate} Hz and {wave.shape[1]} channels, expected {self.rate} Hz and 1: convert it, or set the "
                "rate of the features"
            )
        whole: NDArray[np.int16] = np.round(wave[:, 0] * (_LARGEST + 1)).clip(-_LARGEST - 1, _LARGEST).astype(np.int16)
        return whole

    def fit(self, wave: NDArray[np.int16]) -> NDArray[np.int16]:
        """The middle of a waveform `[samples]`, or all of it between silences, `[1, 1, length]`."""
        start = max(0, (len(wave) - self.length) // 2)
        kept = wave[start : start + self.length]
        missing = self.length - len(kept)
        return np.pad(kept, (missing // 2, missing - missing // 2))[None, None]
