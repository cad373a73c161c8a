from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers import Tokenizer, processors

import lightning_compress
from lightning_compress.data.text_file import TextFile, cut, python_reference

WORDS = ["alpha", "beta", "gamma", "delta"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A hundred lines of three words and their number."""
    lines = [" ".join([WORDS[(row * place) % 4] for place in (1, 2, 3)] + [f"n{row}"]) for row in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "text.txt"


def _data(file: Path, **options: Any) -> TextFile:
    return TextFile(str(file), **{"vocab_size": 300, "length": 8, "batch_size": 4, **options})


def test_targets_are_the_next_tokens_and_windows_stand_in_a_row(file: Path) -> None:
    data = _data(file)
    parts = data.train_part, data.val_part, data.test_part
    texts = cut(file.read_text(), (0.8, 0.9))
    for part, text in zip(parts, texts, strict=True):
        ids = data.vocabulary.tokens(text)
        inputs = part.fetch(torch.arange(len(part.labels)))
        assert inputs.shape == part.labels.shape
        assert 0 <= len(ids) - 1 - inputs.numel() < 8, "no more is left out than fills no window"
        assert torch.equal(inputs.flatten(), ids[: inputs.numel()])
        assert torch.equal(part.labels.flatten(), ids[1 : inputs.numel() + 1])
    assert data.vocabulary.decode(parts[2].fetch(torch.tensor([0]))[0].tolist()).strip().startswith(texts[2][:5])


def test_batches_are_windows(file: Path) -> None:
    data = _data(file)
    seen = list(data.train_dataloader())
    assert {batch.inputs.shape[1:] for batch in seen} == {(8,)}
    assert sorted(index for batch in seen for index in batch.index.tolist()) == list(range(data.num_train))
    first = seen[0]
    assert torch.equal(first.targets, data.train_part.labels[first.index])
    assert torch.equal(first.inputs[:, 1:], first.targets[:, :-1])
    assert (data.num_classes, data.target_shape, data.task_kind) == (data.vocab_size, (8,), "next_token")


def test_the_tokenizer_has_seen_the_train_part_alone(file: Path) -> None:
    names = _data(file, tokens="words").labels
    assert {"alpha", "n0", "n79"} <= set(names)
    assert not {"n90", "n99"} & set(names)
    assert (_data(file, tokens="words").test_part.labels == 1).any(), "which is how they are read"


def test_parts_do_not_overlap_and_end_with_lines(file: Path) -> None:
    text = file.read_text()
    parts = cut(text, (0.8, 0.9))
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts)
    assert [round(len(part) / len(text), 1) for part in parts] == [0.8, 0.1, 0.1]


def test_a_saved_tokenizer_reads_the_text_again(file: Path, tmp_path: Path) -> None:
    first = _data(file)
    assert first.save(tmp_path) == {"tokenizer": "tokenizer.json"}
    again = _data(file, tokenizer=str(tmp_path / "tokenizer.json"), limit=2, tokens="words")
    assert again.num_train == 2
    assert torch.equal(again.val_part.labels, first.val_part.labels)


def test_a_sentence_classifiers_tokenizer_puts_no_marks_around_a_whole_text(file: Path, tmp_path: Path) -> None:
    first = _data(file)
    first.save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="[PAD] $A", special_tokens=[("[PAD]", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = _data(file, tokenizer=str(tmp_path / "tokenizer.json"))
    assert torch.equal(again.train_part.labels, first.train_part.labels)
    again.save(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.encode("alpha beta").ids == first.vocabulary.tokens("alpha beta").tolist()


def test_the_text_that_python_brings_repeats_no_paragraph() -> None:
    paragraphs = python_reference().split("\n\n")
    assert len(paragraphs) > 1000
    assert len(set(paragraphs)) == len(paragraphs)


def test_the_config_builds() -> None:
    config: Any = OmegaConf.load(Path(lightning_compress.__file__).parent / "conf" / "data" / "text_file.yaml")
    data = instantiate(config, vocab_size=400, limit=30)
    assert (data.example.shape, data.num_train, data.vocab_size) == ((2, 35), 30, 400)


def test_what_cannot_be_used_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens must be one of bpe, words, got 'letters'"):
        _data(file, tokens="letters")
    with pytest.raises(ValueError, match=r"shares of the text above 0 .* got 0.5 and 0.5"):
        _data(file, val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="from 1 up; got length=0, limit=None"):
        _data(file, length=0)
    with pytest.raises(ValueError, match=r"the train part of the text has \d+ tokens, too few for .* length=900"):
        _ = _data(file, length=900).train_part
    with pytest.raises(ValueError, match=r"limit must be between 1 and the \d+ train windows, got 9000"):
        _ = _data(file, limit=9000).train_part
    with pytest.raises(FileNotFoundError, match=r"no text at .*none.txt: data.file names a plain text in UTF-8"):
        _ = _data(tmp_path / "none.txt").train_part
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 100)
    with pytest.raises(ValueError, match=r"latin.txt is no text in UTF-8"):
        _ = _data(tmp_path / "latin.txt").train_part
