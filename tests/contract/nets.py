"""Networks of the kinds that are compressed most, small, on 1x8x8 digits; those of texts take token ids too."""

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.models.ds_cnn import DSCNN
from lightning_compress.models.huggingface import huggingface_model
from lightning_compress.models.text_rnn import TextRNN
from lightning_compress.models.text_transformer import TextTransformer

#: What stands for nothing, and the 17 grey levels of a digit; positions that have an embedding.
VOCABULARY, LONGEST = 18, 24
#: Of the digits. Rounded to so few grey levels it does not matter that these are rough.
_MEAN, _STD = 0.305, 0.376


def text_of(digits: Tensor) -> Tensor:
    """Token ids, [batch, 16], of digits [batch, 1, 8, 8]: a grey level for each 2x2 pixels, up to the last ink.

    >>> blank, ink = torch.full((4, 4), -0.81), torch.full((4, 4), 1.85)
    >>> text_of(torch.cat([torch.cat([blank, ink], 1), torch.cat([blank, blank], 1)])[None, None])
    tensor([[ 1,  1, 17, 17,  1,  1, 17, 17,  0,  0,  0,  0,  0,  0,  0,  0]])
    """
    ink = ((F.max_pool2d(digits, 2) * _STD + _MEAN) * 16).round().long().clamp(0, 16).flatten(1)
    given = ink.flip(1).cumsum(1).flip(1) > 0
    return (ink + 1) * given


def texts(length: int, number: int = 32) -> Tensor:
    """Token ids, [number, length], of texts that have from one to all of these; the first has all."""
    draw = torch.Generator().manual_seed(length)
    ends = torch.randint(1, length + 1, (number, 1), generator=draw)
    ends[0] = length
    return torch.randint(1, VOCABULARY, (number, length), generator=draw) * (torch.arange(length) < ends)


class Reads(nn.Module):
    """Reads a digit as a text, and a text as it is."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, [batch, 10], of digits [batch, 1, 8, 8] or token ids [batch, T]."""
        logits: Tensor = self.text(text_of(inputs) if inputs.is_floating_point() else inputs)
        return logits


@torch.no_grad()
def _lively(net: nn.Module) -> nn.Module:
    """With weights large enough that outputs depend on inputs, before much was learned."""
    for parameter in net.parameters():
        parameter.mul_(2.0 if parameter.dim() > 1 else 1.0)
    return net


def transformer() -> nn.Module:
    """A block of two heads."""
    return Reads(
        _lively(
            TextTransformer(vocab_size=VOCABULARY, max_length=LONGEST, num_classes=10, depth=1, features=16, heads=2)
        )
    )


def bert() -> nn.Module:
    """BERT of one layer of two heads, from the transformers library."""
    config = {
        **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 32, "initializer_range": 0.1},
    }
    return Reads(_lively(huggingface_model(config, 10, vocab_size=VOCABULARY, max_length=LONGEST)))


def _recurrent(cell: Literal["lstm", "gru"]) -> nn.Module:
    return Reads(_lively(TextRNN(vocab_size=VOCABULARY, num_classes=10, cell=cell, embedding=8, hidden=12, fc=16)))


def ds_cnn() -> nn.Module:
    """Four depthwise-separable blocks of eight channels."""
    return _lively(DSCNN("S", width=0.125))


#: With what of them loses channels: the others keep all, as what is added to a stream from an embedding does.
IN_EVERY_SUBSET: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "transformer": (transformer, "fc1"),
    "ds_cnn": (ds_cnn, ""),
    "bert": (bert, "intermediate|pooler"),
}
WITH_ALL_FAMILIES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "text_lstm": (functools.partial(_recurrent, "lstm"), "fc1"),
    "text_gru": (functools.partial(_recurrent, "gru"), "fc1"),
}
