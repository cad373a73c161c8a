"""Spoken words as Speech Commands lays them out: a folder of WAV files per word, and lists of what is held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_compress.data.clip import Clip
from lightning_compress.data.order import mix
from lightning_compress.data.samples import Samples

_UNKNOWN, _SILENCE, _BACKGROUND = "unknown", "silence", "_background_noise_"


@final
@dataclass(frozen=True)
class Words:
    """A folder with one folder of recordings per word, `validation_list.txt` and `testing_list.txt`.

    Without `words` every folder is a class. With them there are two more, each with a tenth as many samples as the
    words have together: `unknown`, drawn from the other folders, and `silence`, cut from `_background_noise_` and made
    softer by a random factor (Warden, "Speech Commands", arXiv 1804.03209). `seed` decides what is drawn.

    Raises:
        ValueError: on reading, if a word has no folder, nothing is left to draw from, or a file cannot be decoded.
        FileNotFoundError: on reading, if a list is missing.

    >>> Words(Path("speech_commands"), Clip(16000), ["yes", "no"]).names
    ['yes', 'no', 'unknown', 'silence']
    """

    LISTS: ClassVar[dict[str, str]] = {"val": "validation_list.txt", "test": "testing_list.txt"}

    folder: Path
    clip: Clip
    words: Sequence[str] = ()
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """Name of every class."""
        return [*self.words, _UNKNOWN, _SILENCE] if self.words else self._folders()

    def read(self, part: str) -> Samples:
        """The recordings of `train`, `val` or `test`, int16 `[N, 1, 1, samples]`."""
        files = self._files(part)
        missing = [word for word in self.words if word not in files]
        if missing:
            raise ValueError(f"{self.folder} has no recordings of {missing} for {part}; it has {self._folders()}")
        chosen = [(path, label) for label, word in enumerate(self.words or self.names) for path in files.get(word, [])]
        if not self.words:
            return self._samples([self._clip(path) for path, _ in chosen], [label for _, label in chosen])
        draw = np.random.default_rng(mix(self.seed, *part.encode()))
        count = max(1, len(chosen) // 10)
        others = [path for word, paths in files.items() if word not in self.words for path in paths]
        if len(others) < count:
            raise ValueError(f"{self.folder} has {len(others)} recordings of other words for {part}, expected {count}")
        chosen += [(others[at], len(self.words)) for at in sorted(draw.choice(len(others), count, replace=False))]
        waves = [self._clip(path) for path, _ in chosen] + self._silences(count, draw)
        return self._samples(waves, [label for _, label in chosen] + [len(self.words) + 1] * count)

    def _samples(self, waves: list[NDArray[np.int16]], labels: list[int]) -> Samples:
        return Samples(torch.from_numpy(np.stack(waves)), torch.tensor(labels), self.names)

    def _folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name[0] not in "._")

    def _files(self, part: str) -> dict[str, list[Path]]:
        """Recordings of a part by word."""
        held = {name: set((self.folder / file).read_text().split()) for name, file in self.LISTS.items()}
        kept: dict[str, list[Path]] = {}
        for path in sorted(path for word in self._folders() for path in (self.folder / word).glob("*.wav")):
            word = path.parent.name
            own = next((name for name, listed in held.items() if f"{word}/{path.name}" in listed), "train")
            if own == part:
                kept.setdefault(word, []).append(path)
        return kept

    def _clip(self, path: Path) -> NDArray[np.int16]:
        return self.clip.fit(self._decode(path))

    def _decode(self, path: Path) -> NDArray[np.int16]:
        try:
            return self.clip.decode(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _silences(self, count: int, draw: np.random.Generator) -> list[NDArray[np.int16]]:
        noises = [self._decode(path) for path in sorted((self.folder / _BACKGROUND).glob("*.wav"))]
        if not noises:
            raise ValueError(f"{self.folder} has no WAV files in {_BACKGROUND}, which silence is cut from")
        length, cut = self.clip.length, []
        for number in draw.integers(len(noises), size=count):
            start = draw.integers(max(1, len(noises[number]) - length + 1))
            piece = noises[number][start : start + length] * draw.random()
            cut.append(self.clip.fit(piece.astype(np.int16)))
        return cut
