"""What an optimizer gathered on each parameter, by the parameter's plain name: read, cut like the model, given back."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from lightning_compress.core import edits, surgery
from lightning_compress.core.method import Edit

Moments = dict[str, dict[str, Any]]


def latents(model: nn.Module) -> dict[str, Tensor]:
    """The network's own parameters and buffers, a parametrized one as it is before, by the name that it had then.

    >>> list(latents(nn.BatchNorm1d(2)))
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    found = {}
    for name, (module, attribute) in surgery.own_names(model).items():
        stacks: Any = module.parametrizations if parametrize.is_parametrized(module, attribute) else None
        found[name] = getattr(module, attribute) if stacks is None else stacks[attribute].original
    return found


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that are trained."""
    return {name: tensor for name, tensor in latents(model).items() if isinstance(tensor, nn.Parameter)}


def of(optimizer: Optimizer, model: nn.Module) -> Moments:
    """The state of an optimizer, on the CPU, for the parameters of `model`.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    >>> layer(torch.ones(1)).backward()
    >>> optimizer.step()
    >>> of(optimizer, layer)
    {'weight': {'momentum_buffer': tensor([[1.]])}}
    """
    states = {name: optimizer.state[p] for name, p in _parameters(model).items() if p in optimizer.state}
    return {name: {key: _kept(value) for key, value in state.items()} for name, state in states.items()}


def _kept(value: Any) -> Any:
    return value.detach().cpu().clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value


def cut(moments: Moments, base: nn.Module, made: list[Edit]) -> Moments:
    """The state after the edits that were `made` of `base`, which stays as it is: kept channels go on with theirs.

    What an edit replaces, or gives other values as folding a norm does, starts afresh.
    """
    model = copy.deepcopy(base)
    left = dict(moments)
    for edit in made:
        if edit["kind"] == "keep":
            index = torch.tensor(edit["index"], dtype=torch.int64)
            for name, dim in edits.cuts(model, edit).items():
                shape = model.state_dict()[name].shape
                left |= {name: _taken(left[name], shape, dim, index)} if name in left else {}
        elif edit["kind"] != "set":
            gone = tuple(f"{edit[key]}." for key in ("layer", "norm", "into") if key in edit)
            left = {name: state for name, state in left.items() if not name.startswith(gone)}
        model = edits.replay(model, [edit])
    return left


def _taken(state: dict[str, Any], shape: torch.Size, dim: int, index: Tensor) -> dict[str, Any]:
    """The entries `index` of what has the parameter's shape; counts of steps stay."""
    return {
        key: value.index_select(dim, index) if isinstance(value, Tensor) and value.shape == shape else value
        for key, value in state.items()
    }


def forget(optimizer: Optimizer, parameter: nn.Parameter, entries: Tensor) -> None:
    """Let an optimizer begin afresh with the `entries`, a bool tensor, of a parameter; its count of steps stays.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> forget(optimizer, weight, torch.tensor([True, False]))
    >>> optimizer.state[weight]["momentum_buffer"]
    tensor([0., 1.])
    """
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(entries.to(value.device), 0)


def give(moments: Moments, optimizer: Optimizer, model: nn.Module) -> None:
    """Let a new optimizer go on with the state of the parameters of `model` that there is one for."""
    state = optimizer.state_dict()
    numbers = {
        id(p): n
        for group, own in zip(optimizer.param_groups, state["param_groups"], strict=True)
        for p, n in zip(group["params"], own["params"], strict=True)
    }
    named = {numbers[id(p)]: moments[name] for name, p in _parameters(model).items() if name in moments}
    optimizer.load_state_dict({**state, "state": named})
