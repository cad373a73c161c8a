"""Figures that an experiment asks for beside the task's own metrics."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.run import config as conf
from lightning_compress.run.targets import Config


def figures(config: Config, model: nn.Module, batches: dict[str, Iterable[Any]]) -> dict[str, float]:
    """What the callables under `figures` say of the logits and labels of each split in `batches`.

    Each is called with `{split: (outputs, targets)}`, tensors of all samples on the CPU, and returns numbers by name.
    """
    nodes = [node for node in config["figures"].values() if node is not None]
    if not nodes:
        return {}
    answers = {split: _answers(model.eval(), each) for split, each in batches.items()}
    found: dict[str, float] = {}
    for node in nodes:
        found |= conf.build(node, config["allow"])(answers)
    return found


@torch.no_grad()
def _answers(model: nn.Module, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    pairs = [(model(inputs.cpu()), targets.cpu()) for inputs, targets, *_ in batches]
    return torch.cat([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])
