"""One plain text as data for a language model: windows of tokens, and the token that follows each."""

from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from typing import ClassVar, Literal, final

from lightning_compress.data.labelled import Batching
from lightning_compress.data.samples import Samples
from lightning_compress.data.tokens import TokenData
from lightning_compress.data.vocabulary import Vocabulary, loaded, trained, trained_on_words

_TRAINED: dict[str, Callable[[list[str], int], Vocabulary]] = {"bpe": trained, "words": trained_on_words}


@final
class TextFile(TokenData):
    """A text as windows of token ids, int64 `[B, T]`, whose targets are the tokens one further on, int64 `[B, T]`.

    The text is cut, at ends of lines, into what is trained on, what validates after it, and what tests at its end. Of
    each part windows stand one behind the other, every token but the first is a target once, and the tokens that fill
    no window are left out. A model starts each window with no memory of the one before, so its first tokens are
    harder to tell: perplexity is that of windows of this length.

    Args:
        file: a text in UTF-8. None takes one that every Python brings along, the topics of its language reference
            (about 370 thousand characters, another text for each version of Python), each paragraph once.
        tokens: "bpe", pieces of bytes among which none is unknown, or "words", where rare ones become one token. Both
            are trained on the train part. Perplexities of different tokens do not compare.
        tokenizer: a `tokenizer.json` with a padding token instead.
        vocab_size: tokens of the one that is trained, at most.
        length: tokens of a window.
        batch_size: windows per train batch and rank.
        eval_batch_size: windows per validation and test batch and rank.
        val_fraction: share of the text that validates.
        test_fraction: share of the text that tests.
        limit: train on the first so many windows only: for a smoke run.
        seed: seed of the order of windows.
        drop_last: leave out the train windows that do not fill a batch.

    Raises:
        ValueError: shares that leave nothing to train on, an unknown kind of tokens, or a length below 1. When it is
            read: a text that is not UTF-8, or a part of it without a whole window.
        FileNotFoundError: no such file, when it is read.

    >>> data = TextFile(vocab_size=300, length=20)
    >>> data.example.shape, data.train_part.labels.shape == (data.num_train, 20), data.num_classes
    (torch.Size([2, 20]), True, 300)
    """

    task_kind: ClassVar[str] = "next_token"

    def __init__(
        self,
        file: str | None = None,
        *,
        tokens: Literal["bpe", "words"] = "bpe",
        tokenizer: str | None = None,
        vocab_size: int = 2000,
        length: int = 35,
        batch_size: int = 20,
        eval_batch_size: int = 100,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        limit: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            Batching(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, drop_last=drop_last)
        )
        if tokens not in _TRAINED:
            raise ValueError(f"tokens must be one of {', '.join(_TRAINED)}, got {tokens!r}")
        if min(val_fraction, test_fraction) <= 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                "val_fraction and test_fraction are shares of the text above 0 that leave some to train on; "
                f"got {val_fraction} and {test_fraction}"
            )
        if length < 1 or (limit is not None and limit < 1):
            raise ValueError(f"length and limit count tokens and windows, from 1 up; got {length=}, {limit=}")
        self._file, self._tokens, self._tokenizer, self._vocab_size = file, tokens, tokenizer, vocab_size
        self._length, self._limit = length, limit
        self._ends = (1 - val_fraction - test_fraction, 1 - test_fraction)
        self._test_text = ""

    def read_train_val(self) -> tuple[Samples, Samples]:
        """Reads the text, cuts it, and makes windows of its first two parts."""
        text = python_reference() if self._file is None else _read(Path(self._file).expanduser())
        train, val, self._test_text = cut(text, self._ends)
        self._vocabulary = (
            loaded(self._tokenizer)
            if self._tokenizer is not None
            else _TRAINED[self._tokens]([train], self._vocab_size)
        )
        windows = self._windows(train, "train")
        if self._limit is not None and self._limit > len(windows.inputs):
            raise ValueError(f"limit must be between 1 and the {len(windows.inputs)} train windows, got {self._limit}")
        windows = Samples(windows.inputs[: self._limit], windows.labels[: self._limit], windows.names)
        return windows, self._windows(val, "validation")

    def read_test(self) -> Samples:
        """Windows of the end of the text."""
        self.setup()
        return self._windows(self._test_text, "test")

    def _windows(self, text: str, part: str) -> Samples:
        assert self._vocabulary is not None
        ids = self._vocabulary.tokens(text)
        count = (len(ids) - 1) // self._length
        if count < 1:
            raise ValueError(
                f"the {part} part of the text has {len(ids)} tokens, too few for a window of length={self._length} and "
                "the token behind it: take a longer text, or a smaller length"
            )
        inputs = ids[: count * self._length].view(count, self._length)
        targets = ids[1 : count * self._length + 1].view(count, self._length)
        return Samples(inputs, targets, self._vocabulary.names)


def cut(text: str, ends: tuple[float, ...]) -> list[str]:
    r"""The text in parts that end at these shares of its characters, or at the next end of a line, and the rest.

    >>> cut("one\ntwo\nthree\nfour", (0.3, 0.5))
    ['one\ntwo\n', 'three\n', 'four']
    """
    places = [0]
    for end in ends:
        line = text.find("\n", max(places[-1], int(end * len(text))))
        places.append(len(text) if line < 0 else line + 1)
    return [text[one:other] for one, other in zip(places, [*places[1:], len(text)], strict=True)]


def python_reference() -> str:
    """The topics of Python's language reference in the order of their names, each paragraph where it first stands.

    Topics repeat parts of others, which must not be known from training when they are tested.

    >>> python_reference().startswith('The "assert" statement')
    True
    """
    texts: dict[str, str] = topics.topics
    paragraphs = "\n\n".join(texts[name].strip() for name in sorted(texts)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no text at {path}: data.file names a plain text in UTF-8")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
