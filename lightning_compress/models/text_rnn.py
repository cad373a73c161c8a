"""Recurrent networks that classify texts."""

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn

from lightning_compress.models.width import scaled

_CELLS: dict[str, Callable[..., nn.Module]] = {"lstm": nn.LSTM, "gru": nn.GRU}


@final
class TextRNN(nn.Module):
    """Embeddings, recurrent layers in both directions, and a perceptron on the last state of each.

    With the defaults the BiLSTM of Tang et al. 2019, arXiv 1903.12136. Each direction is a layer of its own; the one
    that reads backwards starts at the end of each text, not of the batch, so what is behind it changes nothing. Takes
    token ids (B, T), gives logits (B, num_classes).

    Args:
        vocab_size: tokens.
        padding_id: the token behind the end of a text.
        num_classes: logits.
        cell: "lstm" or "gru".
        layers: recurrent layers of two directions each.
        embedding: features of a token.
        hidden: states of a direction.
        fc: hidden units of the perceptron.
        dropout: of embeddings, of what recurrent layers put out, and of the perceptron's hidden units.
        width: factor on `embedding`, `hidden` and `fc`.

    Raises:
        ValueError: `cell` is neither.

    >>> TextRNN(vocab_size=50)(torch.ones(2, 7, dtype=torch.int64)).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        padding_id: int = 0,
        num_classes: int = 2,
        cell: Literal["lstm", "gru"] = "lstm",
        layers: int = 1,
        embedding: int = 300,
        hidden: int = 150,
        fc: int = 200,
        dropout: float = 0.3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ValueError(f"cell must be one of {', '.join(_CELLS)}, got {cell!r}")
        embedding, hidden, fc = (scaled(size, width) for size in (embedding, hidden, fc))
        self.padding_id = padding_id
        self.embedding = nn.Embedding(vocab_size, embedding)
        sizes = [embedding, *[2 * hidden] * (layers - 1)]
        make = _CELLS[cell]
        self.forwards = nn.ModuleList(make(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(make(size, hidden, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.fc1, self.relu, self.fc2 = nn.Linear(2 * hidden, fc), nn.ReLU(), nn.Linear(fc, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T) to logits (B, num_classes)."""
        length = (tokens != self.padding_id).sum(1, keepdim=True).clamp(min=1)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        turned = torch.where(place < length, length - 1 - place, place)
        features = self.dropout(self.embedding(tokens))
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            states, _ = ahead(features)
            others, _ = back(_at(features, turned))
            features = self.dropout(torch.cat([states, _at(others, turned)], dim=2))
        ends = torch.cat([length - 1, torch.zeros_like(length)], dim=1)
        last, first = _at(features, ends).chunk(2, dim=2)  # of each, (B, 2, hidden): at the end, at the start
        logits: Tensor = self.fc2(self.dropout(self.relu(self.fc1(torch.cat([last[:, 0], first[:, 1]], dim=1)))))
        return logits


def _at(features: Tensor, places: Tensor) -> Tensor:
    """Of `features` (B, T, F) the rows `places` int64 (B, P): (B, P, F)."""
    return features.gather(1, places[..., None].expand(-1, -1, features.shape[2]))
