"""Data of token ids: what they are of, and the tokenizer that is saved with the run."""

from pathlib import Path

from lightning_compress.data.labelled import LabelledData
from lightning_compress.data.vocabulary import Vocabulary

TOKENIZER = "tokenizer.json"


class TokenData(LabelledData):
    """Texts as token ids, int64; `read_train_val` of a subclass sets `_vocabulary`."""

    _vocabulary: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """What turns texts into token ids."""
        self.setup()
        assert self._vocabulary is not None
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of tokens, padding included."""
        return len(self.vocabulary)

    @property
    def padding_id(self) -> int:
        """The token id behind the end of a text, which no window of a whole text has."""
        return self.vocabulary.padding_id

    def save(self, folder: Path) -> dict[str, str]:
        """Writes the tokenizer into `folder`."""
        self.vocabulary.save(folder / TOKENIZER)
        return {"tokenizer": TOKENIZER}
