"""What a configuration will cost, known before anything is trained."""

import itertools
from typing import Any

import torch
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact, Stage
from lightning_compress.run import build, measure
from lightning_compress.run.fit import bare
from lightning_compress.run.targets import Config

_BATCHES, _SAMPLES = 2, 32


def predict(config: Config) -> dict[str, Any]:
    """Counts and bytes of the network with its start weights, as if its methods' schedules had arrived.

    Phase after phase the methods but those of the objective are attached, shown a few training samples, moved to
    progress 1 and finalized; the last phase's network is packed and counted. What depends on trained weights (layers'
    shares under a global allocation or a threshold, entropy in the packed file) will differ.

    Raises:
        ValueError: what is wrong with the configuration, the data or the methods.

    >>> from lightning_compress.run.config import compose
    >>> predict(compose(["prune=gradual", "quantize=affine"]))["relative_bops"] < 0.1
    True
    """
    data = build.data(config)
    node = build.architecture(config["model"], data, config["allow"])
    make = build.builder(node, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        compact = _compressed(config, data, _begun(make()))
    return measure.count(compact, make(), data.example, node)


@torch.no_grad()
def _begun(model: nn.Module) -> nn.Module:
    """The network with something in the tensors that start as zeros, biases above all: training moves them at once."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.01)
    return model


def _compressed(config: Config, data: Any, model: nn.Module) -> Compact:
    batches = [
        tuple(part[:_SAMPLES] for part in batch) for batch in itertools.islice(data.train_dataloader(), _BATCHES)
    ]
    edits: list[dict[str, Any]] = []
    compact: Compact | None = None
    for phase in build.phases(config):
        methods = build.methods(config, phase["methods"], nn.Identity, module=data)
        compressor = Compressor([method for method in methods if method.stage < Stage.OBJECTIVE])
        model = compressor.attach(bare(compact.model) if compact else model, data.example)
        compressor.steps = compressor.horizon
        compressor.prepare(model, batches)
        compact = compressor.finalize(model, data.example)
        edits = [*edits, *compact.edits]
    assert compact is not None, "a run has at least one phase"
    return Compact(compact.model, compact.stored, edits)
