"""`compiled`: a module through `torch.compile`, for training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._functorch import config as autograd_config


def compiled(model: nn.Module) -> Callable[..., Any]:
    """A call of `model`, compiled when it first happens; `model` itself stays as it is.

    Hooks are guarded, which torch leaves out: networks of one class share what was compiled, and a second one would
    run with the first one's hooks, so without its own activation quantizers and taps. On a CPU the backward pass works
    cheap steps out once more: what would be kept for it otherwise are the masks of ReLU and of clipping, as bool
    tensors, by stores that inductor does not vectorise there.

    >>> call = compiled(nn.Linear(4, 2))
    """
    call = torch.compile(model)

    def forward(*args: Any, **named: Any) -> Any:
        again = all(parameter.is_cpu for parameter in model.parameters())
        with (
            dynamo_config.patch(skip_nnmodule_hook_guards=False),
            autograd_config.patch(aggressive_recomputation=again),
        ):
            return call(*args, **named)

    return forward
