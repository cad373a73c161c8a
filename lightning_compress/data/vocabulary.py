"""Texts to token ids and the file that says how; the only file that imports tokenizers."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

#: What the padding token is called in the tokenizers we make, and in those of BERT, T5 and most others.
PADDINGS = ("[PAD]", "<pad>")
#: The token of a word that is not among the known ones.
UNKNOWN = "[UNK]"


@final
class Vocabulary:
    """A tokenizer with a padding token: texts in, rows of token ids out.

    Raises:
        ValueError: the tokenizer has no padding token.

    >>> vocabulary = trained(["good film", "bad film"], size=300)
    >>> ids, lengths = vocabulary.encode(["a film", "film"], max_length=4)
    >>> ids.shape, bool((ids[1, lengths[1] :] == vocabulary.padding_id).all())
    (torch.Size([2, 4]), True)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        found = [(name, tokenizer.token_to_id(name)) for name in PADDINGS]
        known = [(name, number) for name, number in found if number is not None]
        if not known:
            raise ValueError(f"expected a tokenizer with a padding token, {' or '.join(PADDINGS)}; it has neither")
        self._tokenizer = tokenizer
        self._padding, self.padding_id = known[0]

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Token ids int64 `[N, max_length]`, padded behind and cut there, and how many of each row are the text's.

        Raises:
            ValueError: a text has no token.
        """
        _alone()
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding(length=max_length, pad_id=self.padding_id, pad_token=self._padding)
        encoded = self._tokenizer.encode_batch(list(texts))
        lengths = torch.tensor([sum(each.attention_mask) for each in encoded])
        if not lengths.all():
            row = int((lengths == 0).nonzero()[0])
            raise ValueError(f"row {row} has no token: {texts[row]!r}; leave empty texts out of the data")
        return torch.tensor([each.ids for each in encoded]), lengths

    def tokens(self, text: str) -> Tensor:
        """The token ids of a whole text, int64 `[T]`, neither padded nor cut, nor put between marks as one sentence.

        >>> vocabulary = trained(["good film", "bad film"], size=300)
        >>> vocabulary.decode(vocabulary.tokens("a film, a good film").tolist())
        ' a film, a good film'
        """
        _alone()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.post_processor = None  # not only here: the saved tokenizer has to read texts alike
        return torch.tensor(self._tokenizer.encode(text).ids, dtype=torch.int64)

    @property
    def names(self) -> list[str]:
        """Every token as the tokenizer writes it, by its id."""
        return [str(self._tokenizer.id_to_token(number)) for number in range(len(self))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, padding left out."""
        return str(self._tokenizer.decode([number for number in ids if number != self.padding_id]))

    def save(self, path: Path) -> None:
        """Write the tokenizer as the tokenizers library reads it."""
        self._tokenizer.save(str(path))


def trained(texts: Iterable[str], size: int) -> Vocabulary:
    """A byte-level BPE of at most `size` tokens from `texts`; the same texts give the same one, and none is unknown.

    Sennrich et al. 2016, arXiv 1508.07909; on bytes as in Radford et al. 2019 (GPT-2).

    Raises:
        ValueError: `size` leaves no room for the 256 bytes and the padding token.

    >>> len(trained(["a a a"], size=257))
    257
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size <= len(alphabet):
        raise ValueError(f"vocab_size must be above the {len(alphabet)} bytes that every text is made of, got {size}")
    _alone()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(PADDINGS[:1]), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer)


def trained_on_words(texts: Iterable[str], size: int) -> Vocabulary:
    """The most frequent words and marks of `texts`, at most `size` tokens; all others are one token, `[UNK]`.

    Words are what letters, digits and underscores make up, marks what all but white space does, which is dropped.

    Raises:
        ValueError: `size` leaves no room for a word beside the padding and the unknown token.

    >>> trained_on_words(["a good film, a bad film"], size=5).names
    ['[PAD]', '[UNK]', 'a', 'film', ',']
    """
    special = [PADDINGS[0], UNKNOWN]
    if size <= len(special):
        raise ValueError(f"vocab_size must be above the {len(special)} tokens {' and '.join(special)}, got {size}")
    _alone()
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer)


def loaded(path: str | Path) -> Vocabulary:
    """The tokenizer in a `tokenizer.json`, as `Vocabulary.save` and the transformers library write it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no tokenizer, or one without a padding token.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer file at {path}: expected a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other class
        raise ValueError(f"{path} holds no tokenizer of the tokenizers library: {error}") from error
    return Vocabulary(tokenizer)


def _alone() -> None:
    """Keep the library from starting threads: runs are forked from this process, which its threads do not survive."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
