"""Small text classifiers of the transformers library with random weights."""

import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Method
from lightning_compress.models.huggingface import huggingface_model

BERT: dict[str, object] = {
    **{"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "intermediate_size": 128},
}
DISTILBERT: dict[str, object] = {"model_type": "distilbert", "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
#: Both of its layers are one.
ALBERT: dict[str, object] = {**BERT, "model_type": "albert", "embedding_size": 32}
CONFIGS = {"bert": BERT, "distilbert": DISTILBERT}


def classifier(name: str = "bert", *, seed: int = 0, **fields: object) -> nn.Module:
    """For texts of up to 12 of 60 tokens; weights and biases large enough that all of them matter."""
    torch.manual_seed(seed)
    net = huggingface_model(
        {**{"albert": ALBERT, **CONFIGS}[name], **fields}, 2, task="text", vocab_size=60, max_length=12
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def texts(seed: int = 0, batch: int = 3, length: int = 12) -> Tensor:
    """Token ids, each text but the first shorter than the one before, with padding behind."""
    tokens = torch.randint(1, 60, (batch, length), generator=torch.Generator().manual_seed(seed))
    lengths = torch.linspace(length, 3, batch).long()[:, None]
    return tokens * (torch.arange(length) < lengths)


def trained(model: nn.Module, methods: list[Method], steps: int = 3) -> tuple[Compressor, nn.Module]:
    """The model after a few steps with methods on it, in eval mode; its last outputs are those of real gradients."""
    compressor, tokens, targets = Compressor(methods), texts(), torch.tensor([0, 1, 1])
    model = compressor.attach(model, tokens)
    compressor.horizon = steps
    compressor.prepare(model, [(tokens, targets)])
    groups = [{"params": list(model.parameters())}, *compressor.param_groups()]
    optimizer = torch.optim.Adam(groups, lr=1e-2)
    for _ in range(steps):
        outputs = model.train()(tokens)
        loss = nn.functional.cross_entropy(outputs, targets)
        terms = compressor.loss(compressor.step((tokens, targets), outputs, loss, model))
        optimizer.zero_grad()
        torch.autograd.backward([loss * compressor.task_weight(), *terms.values()])
        optimizer.step()
        compressor.update(model, [optimizer])
    return compressor, model.eval()
