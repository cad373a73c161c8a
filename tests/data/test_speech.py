from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_compress
from lightning_compress.data.audio_augment import Noise, SpecAugment, TimeShift
from lightning_compress.data.clip import Clip
from lightning_compress.data.features import Features
from lightning_compress.data.speech import SpeechData
from lightning_compress.data.words import Words

CONF = Path(lightning_compress.__file__).parent / "conf" / "data"
FEATURES = Features(8000, coefficients=10)
SPEAKERS = ["ann", "bob", "cid"]


def _wave(seed: int, samples: int = 1600) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(seed).integers(-9999, 9999, samples, dtype=np.int16)


def _write(path: Path, wave: np.ndarray[Any, Any], rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """24 train and 6 test recordings of 0.2 s, in two classes by three speakers: waveform n is of seed n."""
    files = [_write(tmp_path / "wav" / f"{n}.wav", _wave(n)) for n in range(30)]
    for split, rows in (("train", range(24)), ("test", range(24, 30))):
        table = {
            "audio": [{"bytes": files[n].read_bytes(), "path": files[n].name} for n in rows],
            "label": [n % 2 for n in rows],
            "speaker": [SPEAKERS[n % 3] for n in rows],
        }
        (tmp_path / "set").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / "set" / f"{split}.parquet")
    return tmp_path / "set"


def _data(folder: Path, **options: Any) -> SpeechData:
    return SpeechData(str(folder), FEATURES, **{"seconds": 0.2, "batch_size": 8, "val_fraction": 0.25, **options})


def _heard(numbers: list[int]) -> torch.Tensor:
    return FEATURES(torch.from_numpy(np.stack([_wave(n) for n in numbers]))[:, None, None])


def test_parts_are_the_features_of_their_waveforms(spoken: Path) -> None:
    data = _data(spoken)
    assert (data.num_classes, data.num_train, len(data.val_part.labels)) == (2, 18, 6)
    assert data.example.shape == (2, 1, 9, 10)
    torch.testing.assert_close(data.test_part.fetch(torch.arange(6)), _heard([*range(24, 30)]))
    both = torch.cat([part.fetch(torch.arange(len(part.labels))) for part in (data.train_part, data.val_part)])
    assert sorted(both.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(_heard([*range(24)]).sum((1, 2, 3)).tolist()))


def test_random_transforms_are_around_the_features(spoken: Path) -> None:
    plain, data = _data(spoken), _data(spoken, augment=[TimeShift(0.1), Noise()], masks=[SpecAugment(3, 2)])
    assert data.train_part.fetch(torch.tensor([0])).dtype == torch.int16
    assert data.normalize == plain.normalize
    torch.testing.assert_close(data.example, plain.example)
    for batch in data.train_dataloader():
        draw = next(
            draw for draw in data.train_dataloader().sampler.draws() if torch.equal(draw.positions, batch.index)
        )
        generator = torch.Generator().manual_seed(draw.seed)
        waves = Noise()(TimeShift(0.1)(data.train_part.fetch(batch.index), generator), generator)
        torch.testing.assert_close(batch.inputs, data.normalize(SpecAugment(3, 2)(FEATURES(waves), generator)))
        assert (batch.view == -1).all()
    for mine, other in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        torch.testing.assert_close(tuple(mine), tuple(other))


def test_views_come_back_and_view_0_is_plain(spoken: Path) -> None:
    data = _data(spoken, augment=[TimeShift(0.2)], views=2)
    torch.testing.assert_close(data.block(0, 0), data.normalize(data.plain_part.fetch(torch.arange(18))))
    loader = data.train_dataloader()
    for epoch, view in ((0, 1), (1, 2), (2, 1)):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            torch.testing.assert_close(batch.inputs, data.block(0, view)[batch.index])
    assert not torch.equal(data.block(0, 1), data.block(0, 2))


def test_classes_left_out_are_left_out_of_the_plain_part_too(spoken: Path) -> None:
    data = _data(spoken, augment=[Noise()], without=[1])
    assert len(data.plain_part.labels) == data.num_train == 9
    assert data.normalize == _data(spoken, without=[1]).normalize


def test_speakers_are_held_out_of_both_splits(spoken: Path) -> None:
    data = _data(spoken, test_speakers=["bob"], val_speakers=["cid"])
    for part, speaker in ((data.train_part, 0), (data.test_part, 1), (data.val_part, 2)):
        rows = [n for n in range(30 if speaker == 1 else 24) if n % 3 == speaker]
        rows += [n for n in range(24, 30) if n % 3 == speaker and speaker != 1]
        torch.testing.assert_close(part.fetch(torch.arange(10)), _heard(rows))
        assert part.labels.tolist() == [n % 2 for n in rows]
    official = _data(spoken, val_speakers=["ann"])
    assert [len(part.labels) for part in (official.train_part, official.val_part, official.test_part)] == [16, 8, 6]


def test_splits_that_name_classes_otherwise_are_not_joined(spoken: Path) -> None:
    for split, names in (("train", ["no", "yes"]), ("test", ["yes", "no"])):
        path = str(spoken / f"{split}.parquet")
        table: Any = datasets.Dataset.from_parquet(path)
        table.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(path)
    with pytest.raises(
        ValueError, match=r"test split names its classes \['yes', 'no'\], the train split \['no', 'yes'\]"
    ):
        _data(spoken, test_speakers=["bob"]).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_speakers": ["dan"]}, r"some, not all, of \['ann', 'bob', 'cid'\]; got \['dan'\]"),
        ({"test_speakers": SPEAKERS}, "some, not all"),
        ({"test_speakers": ["ann"], "speaker_column": "speakr"}, "did you mean 'speaker'.*set speaker_column="),
        ({"audio_column": "sound"}, "no column 'sound'.*set audio_column="),
        ({"words": ["yes"]}, "words is for a folder with validation_list.txt and testing_list.txt"),
        ({"seconds": 0.01}, "a window of 320 samples needs a waveform as long, got 80: raise seconds"),
    ],
)
def test_what_is_not_there_is_named(spoken: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _data(spoken, **options).setup()


def test_a_wrong_rate_is_named_with_its_row(spoken: Path) -> None:
    with pytest.raises(ValueError, match=r"set \(train\), row 0: has 8000 Hz and 1 channels, expected 16000 Hz"):
        SpeechData(str(spoken), Features(16000)).setup()


def test_a_deployer_learns_the_features(spoken: Path) -> None:
    found = _data(spoken, mean=1.0, std=2.0).preprocessing
    features = {"features": asdict(FEATURES), "seconds": 0.2}
    assert found == {"mean": [1.0], "std": [2.0], "pixel_scale": 1.0, "input_size": [1, 9, 10], **features}


def test_decoded_once_with_a_cache(spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = _data(spoken, cache_dir=str(tmp_path / "cache"))
    cached.prepare_data()
    calls: list[Any] = []

    def decode(*args: Any) -> np.ndarray[Any, Any]:
        calls.append(args)
        return _wave(0)

    monkeypatch.setattr(Clip, "decode", decode)
    again = _data(spoken, cache_dir=str(tmp_path / "cache"))
    assert torch.equal(again.example, cached.example)
    assert len(calls) == 1, "the first cell alone is decoded, for the shape"


@pytest.fixture
def word_folder(tmp_path: Path) -> Path:
    """Four words of 20 recordings: 2 and 3 of each are listed for test, 0 and 1 for validation."""
    folder = tmp_path / "speech_commands"
    for number, word in enumerate(("bed", "no", "up", "yes")):
        for take in range(20):
            _write(folder / word / f"{take:02}.wav", np.full(800, 1000 * number + take + 1, dtype=np.int16))
    _write(folder / "_background_noise_" / "hum.wav", np.full(4000, 30000, dtype=np.int16))
    for name, takes in (("validation_list.txt", (0, 1)), ("testing_list.txt", (2, 3))):
        lines = [f"{word}/{take:02}.wav\n" for word in ("bed", "no", "up", "yes") for take in takes]
        (folder / name).write_text("".join(lines))
    return folder


def _takes(part: Any) -> list[int]:
    return [int(wave.max()) for wave in part.inputs]


def test_every_word_is_a_class(word_folder: Path) -> None:
    words = Words(word_folder, Clip(8000, 0.1))
    assert words.names == ["bed", "no", "up", "yes"]
    expected = {"train": range(5, 21), "val": (1, 2), "test": (3, 4)}
    for name, takes in expected.items():
        part = words.read(name)
        assert _takes(part) == [1000 * number + take for number in range(4) for take in takes]
        assert part.labels.tolist() == [number for number in range(4) for _ in takes]


def test_chosen_words_unknown_and_silence(word_folder: Path) -> None:
    part = Words(word_folder, Clip(8000, 0.1), ["yes", "no"]).read("train")
    assert part.names == ["yes", "no", "unknown", "silence"]
    assert torch.bincount(part.labels).tolist() == [16, 16, 3, 3]
    by_class = [
        [take for take, own in zip(_takes(part), part.labels, strict=True) if own == label] for label in range(4)
    ]
    assert by_class[:2] == [[*range(3005, 3021)], [*range(1005, 1021)]]
    assert set(by_class[2]) < {*range(5, 21), *range(2005, 2021)}
    assert len({*by_class[2]}) == len({*by_class[3]}) == 3
    assert 0 < min(by_class[3]) < max(by_class[3]) < 30000
    again, other = (Words(word_folder, Clip(8000, 0.1), ["yes", "no"], seed).read("train") for seed in (0, 1))
    assert torch.equal(part.inputs, again.inputs)
    assert not torch.equal(part.inputs, other.inputs)


def test_data_from_a_word_folder(word_folder: Path) -> None:
    data = SpeechData(str(word_folder), FEATURES, seconds=0.1, words=["up", "no"], augment=[TimeShift()])
    assert [len(part.labels) for part in (data.train_part, data.val_part, data.test_part)] == [38, 6, 6]
    assert next(iter(data.train_dataloader())).inputs.shape == (38, 1, 4, 10)


@pytest.mark.parametrize(
    ("options", "gone", "message"),
    [
        ({"words": ["yes", "nope"]}, None, r"no recordings of \['nope'\] for train; it has \['bed', 'no'"),
        ({"words": ["bed", "no", "up", "yes"]}, None, "0 recordings of other words for train, expected 6"),
        ({"words": ["yes"]}, "_background_noise_/hum.wav", "no WAV files in _background_noise_"),
        ({"test_speakers": ["ann"]}, None, "lists what is held out: leave val_speakers and test_speakers away"),
        ({"seconds": 0.01}, None, "a window of 320"),
    ],
)
def test_word_folders_that_cannot_serve(word_folder: Path, options: Any, gone: str | None, message: str) -> None:
    if gone:
        (word_folder / gone).unlink()
    with pytest.raises(ValueError, match=message):
        SpeechData(str(word_folder), FEATURES, **{"seconds": 0.1, **options}).setup()


def test_a_missing_list_and_a_bad_file_are_named(word_folder: Path) -> None:
    (word_folder / "up" / "07.wav").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"up/07.wav: is no readable audio"):
        _data(word_folder).setup()
    (word_folder / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"testing_list.txt"):
        _data(word_folder).setup()


@pytest.mark.parametrize("name", ["fsdd", "speech_commands"])
def test_configs_build(name: str, spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_COMPRESS_DATA", str(tmp_path))
    config: Any = OmegaConf.load(CONF / f"{name}.yaml")
    config.source, config.features.rate = f"hub/{spoken.name}", 8000
    config.pop("words", None)
    batch = next(iter(instantiate(config).train_dataloader()))
    assert batch.inputs.shape[1:] == (1, 49, 10)
    assert (batch.view == -1).all()


@pytest.mark.data
def test_real_digits(data_root: Path, tmp_path: Path) -> None:
    data = SpeechData("fsdd", FEATURES, root=str(data_root), cache_dir=str(tmp_path / "cache"))
    assert [len(part.labels) for part in (data.train_part, data.val_part, data.test_part)] == [2430, 270, 300]
    assert torch.bincount(data.test_part.labels).tolist() == [30] * 10
    assert data.example.shape == (2, 1, 49, 10)
    # The nearest recording to train on mostly is of the same digit where features and labels belong together.
    train, test = (part.fetch(torch.arange(len(part.labels))).flatten(1) for part in (data.train_part, data.test_part))
    nearest = torch.cdist(test, train).argmin(dim=1)
    assert (data.train_part.labels[nearest] == data.test_part.labels).float().mean() > 0.8
    held = SpeechData("fsdd", FEATURES, root=str(data_root), test_speakers=["theo"], val_speakers=["lucas"])
    assert [len(part.labels) for part in (held.train_part, held.val_part, held.test_part)] == [2000, 500, 500]
