"""Spoken words and digits: waveforms in memory, features and random transforms on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch

from lightning_compress.data.augment import Augment
from lightning_compress.data.clip import Clip
from lightning_compress.data.features import Features
from lightning_compress.data.labelled import Batching, LabelledData
from lightning_compress.data.normalize import Statistic
from lightning_compress.data.samples import Part, Samples
from lightning_compress.data.source import Columns, locate, read_column, read_split
from lightning_compress.data.splits import train_val
from lightning_compress.data.words import Words


@final
class SpeechData(LabelledData):
    """Labelled recordings as features `[1, frames, bins]`, from Parquet files, the hub or a folder of words.

    The train part is kept as waveforms where random transforms follow; all other features are computed once.

    Args:
        source: a hub id, a folder of Parquet files with a column of audio, or one that `Words` reads.
        features: what is computed from a waveform; its rate is that of the recordings.
        root: folder of local copies; if given, a source that is no whole path is `<root>/<its last name>`.
        seconds: length of a sample; shorter recordings get silence around them, of longer ones the middle counts.
        audio_column: column of audio; the only one if None.
        label_column: column of integer labels; `label` if None.
        words: of a folder of words, the classes beside `unknown` and `silence`; none: each word is a class.
        speaker_column: column of speakers, read where speakers are held out.
        val_speakers: who validates; without them `val_fraction` of the recordings, drawn by class, does.
        test_speakers: who tests, with recordings of both splits; without them the test split does.
        batch_size: samples per train batch and rank.
        eval_batch_size: samples per validation and test batch and rank.
        val_fraction: share held out for validation.
        split_seed: seed of the held-out part; not the seed of the run.
        seed: seed of order and transforms.
        augment: random transforms of the train part's waveforms.
        masks: random transforms of its features.
        views: how many times they are drawn for each sample; None draws anew in every epoch.
        mean: `auto`, or what to subtract from the features.
        std: `auto`, or what to divide them by.
        drop_last: leave out the train samples that do not fill a batch.
        channels_last: whether inputs are laid out channels last.
        heads: several questions about each sample, as in `lightning_compress.data.vision.ImageData`.
        without: classes, by number, of which nothing is trained on; validation, test and the logits keep them.
        cache_dir: folder for decoded waveforms of Parquet files, so that many runs decode once.

    Reading raises what `lightning_compress.data.source.open_split`, `lightning_compress.data.words.Words` and
    `lightning_compress.data.splits` raise.

    Raises:
        ValueError: on reading, if a speaker is not there, or speakers or words are asked of the other kind of source.

    >>> data = SpeechData("fsdd", Features(8000))  # nothing is read before the first use
    """

    def __init__(
        self,
        source: str,
        features: Features,
        *,
        root: str | None = None,
        seconds: float = 1.0,
        audio_column: str | None = None,
        label_column: str | None = None,
        words: Sequence[str] = (),
        speaker_column: str = "speaker",
        val_speakers: Sequence[str] = (),
        test_speakers: Sequence[str] = (),
        batch_size: int = 100,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        augment: Sequence[Augment] = (),
        masks: Sequence[Augment] = (),
        views: int | None = None,
        mean: Statistic = "auto",
        std: Statistic = "auto",
        drop_last: bool = False,
        channels_last: bool = False,
        heads: Mapping[str, Sequence[int] | None] | None = None,
        without: Sequence[int] = (),
        cache_dir: str | None = None,
    ) -> None:
        self._random = bool(augment or masks)
        super().__init__(
            Batching(
                batch_size=batch_size,
                eval_batch_size=eval_batch_size,
                seed=seed,
                augment=[*augment, features, *masks] if self._random else [],
                views=views,
                mean=mean,
                std=std,
                drop_last=drop_last,
                channels_last=channels_last,
                heads=heads or {},
                without=without,
            )
        )
        self._features, self._clip = features, Clip(features.rate, seconds)
        self._source, self._words = locate(source, root), words
        self._columns, self._speaker_column = Columns(audio_column, label_column), speaker_column
        self._val_speakers, self._test_speakers = val_speakers, test_speakers
        self._val_fraction, self._split_seed, self._cache_dir = val_fraction, split_seed, cache_dir
        self._carved_test: Samples | None = None
        self._plain: Samples | None = None

    def prepare_data(self) -> None:
        """Fills the caches on one process before the others look for them."""
        self.setup()

    @property
    def plain_part(self) -> Part:
        """Features of the samples to train on, without random transforms."""
        if not self._random:
            return self.train_part
        if self._plain is None:
            part = self.train_part
            assert isinstance(part, Samples)
            self._plain = self._heard(part)
        return self._plain

    @property
    def preprocessing(self) -> dict[str, object]:
        """What a deployer must do to a waveform: these features of it, then `(feature - mean) / std`."""
        return {**super().preprocessing, "features": asdict(self._features), "seconds": self._clip.seconds}

    def read_train_val(self) -> tuple[Samples, Samples]:
        """Reads what is trained and validated on, and keeps for later what speakers test."""
        words = self._word_folder()
        train, val = (words.read("train"), words.read("val")) if words else self._read_table()
        return train if self._random else self._heard(train), self._heard(val)

    def read_test(self) -> Samples:
        """Reads the test split, or gives what was kept for it."""
        self.setup()
        words = self._word_folder()
        if words:
            return self._heard(words.read("test"))
        return self._heard(self._read("test") if self._carved_test is None else self._carved_test)

    def _word_folder(self) -> Words | None:
        folder = Path(self._source).expanduser()
        if any((folder / name).is_file() for name in Words.LISTS.values()):
            if self._val_speakers or self._test_speakers:
                raise ValueError(f"{folder} lists what is held out: leave val_speakers and test_speakers away")
            return Words(folder, self._clip, self._words, self._split_seed)
        if self._words:
            raise ValueError(f"words is for a folder with {' and '.join(Words.LISTS.values())}, got {self._source}")
        return None

    def _read_table(self) -> tuple[Samples, Samples]:
        everything, speakers = self._read("train"), self._speakers("train")
        if self._test_speakers:
            other = self._read("test")
            if other.names != everything.names:
                raise ValueError(
                    f"the test split names its classes {other.names}, the train split {everything.names}: they must "
                    "agree where test_speakers are taken from both"
                )
            everything = Samples(
                torch.cat([everything.inputs, other.inputs]),
                torch.cat([everything.labels, other.labels]),
                everything.names,
            )
            speakers += self._speakers("test")
            tests = self._by(speakers, self._test_speakers)
            self._carved_test = everything.subset(tests.nonzero()[:, 0])
            everything = everything.subset((~tests).nonzero()[:, 0])
            speakers = [speaker for speaker in speakers if speaker not in self._test_speakers]
        if self._val_speakers:
            vals = self._by(speakers, self._val_speakers)
            return everything.subset((~vals).nonzero()[:, 0]), everything.subset(vals.nonzero()[:, 0])
        train, val = train_val(everything.labels, val_fraction=self._val_fraction, seed=self._split_seed)
        return everything.subset(train), everything.subset(val)

    def _read(self, split: str) -> Samples:
        return read_split(self._source, split, columns=self._columns, decoder=self._clip, cache_dir=self._cache_dir)

    def _speakers(self, split: str) -> list[Any]:
        if not (self._val_speakers or self._test_speakers):
            return []
        column, argument = self._speaker_column, "speaker_column"
        return read_column(self._source, split, column, argument, cache_dir=self._cache_dir)

    def _by(self, speakers: Sequence[Any], wanted: Sequence[str]) -> torch.Tensor:
        """Which samples are of the speakers `wanted`, bool `[N]`, some but not all."""
        known = sorted(set(speakers))
        if not set(wanted) < set(known):
            raise ValueError(f"held-out speakers must be some, not all, of {known}; got {list(wanted)}")
        return torch.tensor([speaker in wanted for speaker in speakers])

    def _heard(self, part: Samples) -> Samples:
        """The features of waveforms."""
        return Samples(
            torch.cat([self._features(waves) for waves in torch.split(part.inputs, 1000)]), part.labels, part.names
        )
