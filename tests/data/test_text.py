from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_compress
from lightning_compress.data.text import TextData
from lightning_compress.data.vocabulary import loaded

WORDS = ["good", "bad", "film", "plot", "dull", "fun"]


def _texts(count: int) -> list[str]:
    return [" ".join(WORDS[(row + word) % len(WORDS)] for word in range(1 + row % 9)) for row in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 train and 10 test texts of 1 to 9 words in two classes."""
    place = tmp_path / "films"
    place.mkdir()
    for split, count in (("train", 60), ("test", 10)):
        rows = {"text": _texts(count), "label": [row % 2 for row in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(place / f"{split}.parquet")
    return place


def _data(folder: Path, **options: object) -> TextData:
    settings: dict[str, object] = {"vocab_size": 300, "max_length": 12, "batch_size": 8, **options}
    return TextData(str(folder), **settings)  # type: ignore[arg-type]


def test_texts_become_padded_token_ids(folder: Path) -> None:
    data = _data(folder, eval_batch_size=100)
    assert (data.num_train, data.num_classes, data.padding_id) == (54, 2, 0)
    assert (data.example.shape, data.example.dtype) == ((2, 12), torch.int64)
    (batch,) = data.test_dataloader()
    ids, lengths = data.vocabulary.encode(_texts(10), 12)
    assert torch.equal(batch.inputs, ids), "ids are not normalised"
    assert torch.equal(batch.targets, torch.arange(10) % 2)
    assert (batch.inputs != 0).sum(1).tolist() == lengths.tolist() == [1 + row % 9 for row in range(10)]


def test_the_tokenizer_has_seen_the_train_part_alone(folder: Path) -> None:
    rows = {"text": ["good"] * 40 + ["unseen"] * 20, "label": [0] * 40 + [1] * 20}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
    train = _data(folder, limit=1).train_part
    assert train.names == ["0", "1"]
    single = _data(folder, limit=1, split_seed=1)
    word = single.vocabulary.decode(single.train_part.fetch(torch.tensor([0]))[0].tolist()).strip()
    other = {"good": "unseen", "unseen": "good"}[word]
    assert single.vocabulary.encode([word], 12)[1].item() < single.vocabulary.encode([other], 12)[1].item()


def test_train_batches_are_cut_to_their_longest_text(folder: Path) -> None:
    data = _data(folder)
    seen = []
    for batch in data.train_dataloader():
        longest = int((batch.inputs != 0).sum(1).max())
        assert batch.inputs.shape[1] == min(12, -(-longest // 8) * 8)
        whole = data.train_part.fetch(batch.index)
        assert torch.equal(whole[:, : batch.inputs.shape[1]], batch.inputs)
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(54))


def test_a_saved_tokenizer_reads_the_data_again(folder: Path, tmp_path: Path) -> None:
    first = _data(folder)
    assert first.save(tmp_path) == {"tokenizer": "tokenizer.json"}
    again = _data(folder, tokenizer=str(tmp_path / "tokenizer.json"), split_seed=5, limit=3)
    assert len(loaded(tmp_path / "tokenizer.json")) == again.vocab_size == first.vocab_size
    assert torch.equal(again.test_part.fetch(torch.arange(10)), first.test_part.fetch(torch.arange(10)))


def test_a_test_part_can_be_held_out(folder: Path) -> None:
    data = _data(folder, test=0.2)
    parts = data.train_part, data.val_part, data.test_part
    assert [len(part.labels) for part in parts] == [42, 6, 12]


@pytest.mark.parametrize("name", ["sst2", "texts"])
def test_the_configs_build(folder: Path, name: str) -> None:
    config: Any = OmegaConf.load(Path(lightning_compress.__file__).parent / "conf" / "data" / f"{name}.yaml")
    data = instantiate(config, source=str(folder), root=None, text_column="text", test="test")
    assert data.example.shape == (2, 64)


def test_wrong_columns_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no column 'txt'; .* \(did you mean 'text'\?\): set text_column="):
        _ = _data(folder, text_column="txt").train_part
    with pytest.raises(ValueError, match=r"has no column 'score'.*: set label_column="):
        _ = _data(folder, label_column="score").train_part
    with pytest.raises(ValueError, match="texts in 'label' must be strings and none may be missing, got int64 with 0"):
        _ = _data(folder, text_column="label").train_part


@pytest.mark.data
def test_sst2(data_root: Path) -> None:
    data = TextData("stanfordnlp/sst2", root=str(data_root), text_column="sentence", test="validation", limit=2000)
    assert (data.vocab_size, data.num_classes) == (8000, 2)
    assert (data.num_train, len(data.val_part.labels), len(data.test_part.labels)) == (2000, 6735, 872)
    (first,) = data.test_part.fetch(torch.tensor([0])).tolist()
    assert data.vocabulary.decode(first) == " one long string of cliches ."
