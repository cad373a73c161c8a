"""Text classification from a folder of Parquet files or the public hub."""

from typing import final

from torch import Tensor

from lightning_compress.data.labelled import Batching
from lightning_compress.data.samples import Samples
from lightning_compress.data.source import locate, read_texts
from lightning_compress.data.splits import held_out
from lightning_compress.data.tokens import TokenData
from lightning_compress.data.vocabulary import loaded, trained


@final
class TextData(TokenData):
    """Labelled texts as token ids, int64 `[B, T]`, resident on the training device.

    Each batch is cut to its longest text, and train batches hold texts of about the same length. The tokenizer is
    trained on the train part unless there is one, and saved with the run.

    Args:
        source: a hub id or a folder of Parquet files named after their split.
        root: folder of local copies; if given, a source that is no whole path is `<root>/<its last name>`.
        text_column: column of texts.
        label_column: column of integer labels; `label` if None.
        tokenizer: a `tokenizer.json` with a padding token; None trains one on the train part.
        vocab_size: tokens of the one that is trained, at most; small data has fewer.
        max_length: tokens of a text; what is longer is cut.
        batch_size: samples per train batch and rank.
        eval_batch_size: samples per validation and test batch and rank.
        val_fraction: share of the train split held out for validation.
        test: name of the test split, or the share of the train split to hold out where there is none.
        split_seed: seed of the held-out parts; not the seed of the run.
        limit: train on that many samples only, drawn with `split_seed`: for a smoke run.
        seed: seed of the order.
        drop_last: leave out the train samples that do not fill a batch.
        cache_dir: where `datasets` keeps its Arrow files; its own default if None.

    Reading raises what `lightning_compress.data.source.open_split` raises, splitting what
    `lightning_compress.data.splits` raises, encoding what `lightning_compress.data.vocabulary` raises.

    >>> data = TextData("stanfordnlp/sst2", test="validation")  # nothing is read before the first use
    """

    def __init__(
        self,
        source: str,
        *,
        root: str | None = None,
        text_column: str = "text",
        label_column: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 8000,
        max_length: int = 64,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        val_fraction: float = 0.1,
        test: str | float = "test",
        split_seed: int = 0,
        limit: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            Batching(batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, drop_last=drop_last)
        )
        self._source, self._cache_dir = locate(source, root), cache_dir
        self._columns = text_column, label_column
        self._tokenizer, self._vocab_size, self._max_length = tokenizer, vocab_size, max_length
        self._val_fraction, self._test_from, self._split_seed = val_fraction, test, split_seed
        self._limit = limit
        self._carved_test: Samples | None = None

    def read_train_val(self) -> tuple[Samples, Samples]:
        """Reads the train split, holds out what validates (and tests, if there is no test split), and tokenizes."""
        texts, labels, names = self._read("train")
        train, val, test = held_out(
            labels,
            val_fraction=self._val_fraction,
            test_fraction=None if isinstance(self._test_from, str) else self._test_from,
            seed=self._split_seed,
            limit=self._limit,
        )
        self._vocabulary = (
            loaded(self._tokenizer)
            if self._tokenizer is not None
            else trained([texts[row] for row in train.tolist()], self._vocab_size)
        )
        ids, lengths = self._vocabulary.encode(texts, self._max_length)
        everything = Samples(ids, labels, names, lengths)
        if test is not None:
            self._carved_test = everything.subset(test)
        return everything.subset(train), everything.subset(val)

    def read_test(self) -> Samples:
        """Reads the test split, or gives the part held out for it."""
        vocabulary = self.vocabulary
        if not isinstance(self._test_from, str):
            assert self._carved_test is not None
            return self._carved_test
        texts, labels, names = self._read(self._test_from)
        ids, lengths = vocabulary.encode(texts, self._max_length)
        return Samples(ids, labels, names, lengths)

    def _read(self, split: str) -> tuple[list[str], Tensor, list[str]]:
        text, label = self._columns
        return read_texts(self._source, split, text, label=label, cache_dir=self._cache_dir)
