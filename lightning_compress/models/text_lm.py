"""A recurrent language model."""

from typing import final

from torch import Tensor, nn

from lightning_compress.models.width import scaled

_INITIAL = 0.1


@final
class TextLM(nn.Module):
    """Embeddings, layers of an LSTM, and an output layer whose weight is that of the embeddings.

    The network of Zaremba et al. 2014 (arXiv 1409.2329), whose dropout is between layers and never from one time step
    to the next, with the tied weight of Press and Wolf 2017 (arXiv 1608.05859). Each layer starts from zeros. Takes
    token ids (B, T) of any length, gives logits of the token that follows each, (B, vocab_size, T): classes are the
    second dimension, as of all outputs.

    Args:
        vocab_size: tokens.
        layers: of the LSTM, one on top of the other.
        features: of an embedding and of a state, which are the same as the weight is tied.
        dropout: of embeddings and of what each layer puts out.
        width: factor on `features`.

    >>> import torch
    >>> net = TextLM(vocab_size=50)
    >>> net(torch.ones(2, 7, dtype=torch.int64)).shape
    torch.Size([2, 50, 7])
    >>> net.fc.weight is net.embedding.weight
    True
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        layers: int = 2,
        features: int = 200,
        dropout: float = 0.5,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        features = scaled(features, width)
        self.embedding = nn.Embedding(vocab_size, features)
        self.lstms = nn.ModuleList(nn.LSTM(features, features, batch_first=True) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, vocab_size)
        self.fc.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -_INITIAL, _INITIAL)
        nn.init.zeros_(self.fc.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T) to logits (B, vocab_size, T)."""
        features = self.dropout(self.embedding(tokens))
        for lstm in self.lstms:
            features = self.dropout(lstm(features)[0])
        logits: Tensor = self.fc(features).transpose(1, 2)
        return logits
