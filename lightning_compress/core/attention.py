"""Attention with fewer heads than its embedding has room for."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@final
class FewerHeads(nn.MultiheadAttention):
    """`nn.MultiheadAttention` that lost some of its heads: the same names of tensors, the same call.

    PyTorch's own derives the width of a head from the number of heads, so it cannot run with some cut out. A layer
    becomes this one when an edit cuts its rows (`core/edits.py`); `in_proj_weight` is
    [3 * num_heads * head_dim, embed_dim] and `out_proj.weight` [embed_dim, num_heads * head_dim].
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, for batches; masks are bool or added to the scores."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        scores = q @ k.transpose(-1, -2) * self.head_dim**-0.5
        for mask in (attn_mask, key_padding_mask):
            if mask is not None:
                scores = scores + _added(mask, scores, is_padding=mask is key_padding_mask)
        shares = scores.softmax(-1)
        mixed = F.dropout(shares, self.dropout, self.training) @ v
        outputs = F.linear(mixed.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        shown = (shares.mean(1) if average_attn_weights else shares) if need_weights else None
        return outputs if self.batch_first else outputs.transpose(0, 1), shown


def _added(mask: Tensor, scores: Tensor, *, is_padding: bool) -> Tensor:
    """What to add to scores [batch, heads, to, from] for a mask [batch, from], [to, from] or [batch * heads, ...]."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -torch.inf)
    if is_padding:
        return mask[:, None, None]
    return mask.view(scores.shape) if mask.dim() == 3 else mask
