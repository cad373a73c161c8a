"""A small Transformer encoder that classifies texts."""

from typing import final

import torch
from torch import Tensor, nn

from lightning_compress.models.width import scaled


@final
class Attention(nn.Module):
    """Multi-head self-attention of four plain linear layers (Vaswani et al. 2017, arXiv 1706.03762).

    Takes (B, T, features) and which positions are texts, bool (B, T); gives (B, T, features). The child `scores` puts
    out the scores before mask and softmax, (B, heads, T, T).
    """

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(features, features) for _ in range(3))
        self.out = nn.Linear(features, features)
        self.scores = nn.Identity()

    def forward(self, inputs: Tensor, given: Tensor) -> Tensor:
        """Mix the positions that are given."""
        layers = self.query, self.key, self.value
        query, key, value = (layer(inputs).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in layers)
        scores = self.scores(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5)
        shares = scores.masked_fill(~given[:, None, None], torch.finfo(scores.dtype).min).softmax(-1)
        mixed: Tensor = self.out((shares @ value).transpose(1, 2).flatten(2))
        return mixed


@final
class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and added to its input (pre-norm, arXiv 2002.04745)."""

    def __init__(self, features: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attention = Attention(features, heads)
        self.norm2 = nn.LayerNorm(features)
        self.fc1, self.gelu, self.fc2 = nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor, given: Tensor) -> Tensor:
        """Map (B, T, features) to the same shape; `given` bool (B, T)."""
        inputs = inputs + self.dropout(self.attention(self.norm1(inputs), given))
        outputs: Tensor = inputs + self.dropout(self.fc2(self.gelu(self.fc1(self.norm2(inputs)))))
        return outputs


@final
class TextTransformer(nn.Module):
    """Pre-norm Transformer encoder over token ids, its outputs averaged over the text, then linear.

    With the defaults, 793 thousand parameters in the blocks and 128 for each token and position. What is behind the
    end of a text changes nothing. Takes token ids (B, T), T up to `max_length`, gives logits (B, num_classes).

    Args:
        vocab_size: tokens.
        padding_id: the token behind the end of a text.
        max_length: positions that have an embedding of their own.
        num_classes: logits.
        depth: blocks.
        features: of each position; a multiple of `heads`.
        heads: of the attention.
        dropout: of embeddings and of what blocks add.
        width: factor on `features`; the perceptron inside a block has 4 times as many.

    >>> TextTransformer(vocab_size=50)(torch.ones(2, 7, dtype=torch.int64)).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        padding_id: int = 0,
        max_length: int = 64,
        num_classes: int = 2,
        depth: int = 4,
        features: int = 128,
        heads: int = 4,
        dropout: float = 0.1,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        features = scaled(features, width, multiple=heads)
        self.padding_id = padding_id
        self.embedding = nn.Embedding(vocab_size, features)
        self.position = nn.Embedding(max_length, features)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(features, heads, 4 * features, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(features)
        self.fc = nn.Linear(features, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T) to logits (B, num_classes)."""
        given = tokens != self.padding_id
        places = torch.arange(tokens.shape[1], device=tokens.device)
        features = self.dropout(self.embedding(tokens) + self.position(places))
        for block in self.blocks:
            features = block(features, given)
        kept = self.norm(features) * given[..., None]
        mean = kept.sum(1) / given.sum(1, keepdim=True).clamp(min=1)
        logits: Tensor = self.fc(mean)
        return logits
