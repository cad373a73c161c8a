import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from lightning_compress.data.vocabulary import Vocabulary, loaded, trained, trained_on_words

TEXTS = ["a good film", "a bad , bad film", "goodness , what a film", "zoë 's naïve café"]


def test_every_text_comes_back_even_of_letters_never_seen() -> None:
    vocabulary = trained(TEXTS, size=400)
    for text in [*TEXTS, "日本 !?", "tab\tand  spaces"]:
        ids, lengths = vocabulary.encode([text], max_length=100)
        assert vocabulary.decode(ids[0].tolist()).removeprefix(" ") == text
        assert (ids[0, : lengths[0]] != vocabulary.padding_id).all()


def test_rows_are_padded_and_cut_to_one_length() -> None:
    vocabulary = trained(TEXTS, size=400)
    ids, lengths = vocabulary.encode(["a", "a good film", "goodness , what a film"], max_length=4)
    assert (ids.shape, ids.dtype, lengths.dtype) == ((3, 4), torch.int64, torch.int64)
    assert lengths.tolist() == [1, 3, 4]
    assert (ids[0, 1:] == vocabulary.padding_id).all()
    assert torch.equal(ids[2], vocabulary.encode(["goodness , what a film"], max_length=50)[0][0, :4])


def test_frequent_words_are_single_tokens() -> None:
    vocabulary = trained(["film"] * 9 + ["a"], size=300)
    assert vocabulary.encode(["film film"], max_length=9)[1].tolist() == [2]
    assert len(vocabulary) == 257 + 4 + 1, "one more for each pair that was joined: four in ' film', one in ' a'"


def test_another_process_trains_the_same_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lightning_compress.data.vocabulary import trained; "
        f"trained({TEXTS * 3!r}, size=300).save(Path(sys.argv[1]))"
    )
    for name in ("one", "other"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_saved_one_is_the_same(tmp_path: Path) -> None:
    vocabulary = trained(TEXTS, size=300)
    vocabulary.save(tmp_path / "tokenizer.json")
    again = loaded(tmp_path / "tokenizer.json")
    assert torch.equal(again.encode(TEXTS, 20)[0], vocabulary.encode(TEXTS, 20)[0])
    assert (len(again), again.padding_id) == (len(vocabulary), vocabulary.padding_id)


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be above the 256 bytes .* got 256"):
        trained(TEXTS, size=256)
    with pytest.raises(ValueError, match="row 1 has no token: ''"):
        trained(TEXTS, size=300).encode(["a", ""], max_length=4)
    with pytest.raises(ValueError, match=r"padding token, \[PAD\] or <pad>; it has neither"):
        Vocabulary(Tokenizer(models.BPE()))
    with pytest.raises(FileNotFoundError, match=r"no tokenizer file at .*: expected a tokenizer\.json"):
        loaded(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"broken\.json holds no tokenizer"):
        loaded(tmp_path / "broken.json")


def test_a_whole_text_is_neither_cut_nor_padded() -> None:
    vocabulary = trained(TEXTS, size=400)
    _ = vocabulary.encode(TEXTS, max_length=2)
    whole = vocabulary.tokens(" ".join(TEXTS) * 9)
    assert vocabulary.decode(whole.tolist()).strip() == " ".join(TEXTS) * 9
    assert torch.equal(vocabulary.encode(["a good film"], 3)[0][0], vocabulary.tokens("a good film"))


def test_words_are_the_most_frequent_ones_and_all_else_is_one_token() -> None:
    vocabulary = trained_on_words(["film film, film", "good, bad"], size=4)
    assert vocabulary.names == ["[PAD]", "[UNK]", "film", ","]
    assert vocabulary.tokens("a film, bad\nfilm").tolist() == [1, 2, 3, 1, 2]
    with pytest.raises(ValueError, match=r"above the 2 tokens \[PAD\] and \[UNK\], got 2"):
        trained_on_words(TEXTS, size=2)
