"""Small text classifiers of the transformers library with random weights."""

import torch
from torch import Tensor, nn

from lightning_compress.models.huggingface import huggingface_model

BERT: dict[str, object] = {
    **{"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "intermediate_size": 128},
}
DISTILBERT: dict[str, object] = {"model_type": "distilbert", "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
CONFIGS = {"bert": BERT, "distilbert": DISTILBERT}


def classifier(name: str = "bert", *, seed: int = 0, **fields: object) -> nn.Module:
    """For texts of up to 12 of 60 tokens; weights and biases large enough that all of them matter."""
    torch.manual_seed(seed)
    net = huggingface_model({**CONFIGS[name], **fields}, 2, task="text", vocab_size=60, max_length=12).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def texts(seed: int = 0, batch: int = 3, length: int = 12) -> Tensor:
    """Token ids, each text but the first shorter than the one before, with padding behind."""
    tokens = torch.randint(1, 60, (batch, length), generator=torch.Generator().manual_seed(seed))
    lengths = torch.linspace(length, 3, batch).long()[:, None]
    return tokens * (torch.arange(length) < lengths)
