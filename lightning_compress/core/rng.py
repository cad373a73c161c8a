"""The state of every random generator a run uses, as data that loads without pickle."""

import random
from typing import Any

import numpy as np
import torch
from torch import distributed as dist


def rng_state() -> dict[str, Any]:
    """States of python, numpy and torch, and of the current CUDA device where one is in use.

    >>> state = rng_state()
    >>> first = torch.rand(1)
    >>> set_rng_state(state)
    >>> bool(torch.rand(1) == first)
    True
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every generator back where `rng_state` found it."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())


def rng_states() -> list[dict[str, Any]]:
    """The state of each rank, in order of rank; every rank has to call it.

    >>> len(rng_states())
    1
    """
    mine = rng_state()
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, mine)
    return states


def set_rng_states(states: list[dict[str, Any]]) -> None:
    """Put this rank's generators back; a rank that has no saved state keeps its own."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    if rank < len(states):
        set_rng_state(states[rank])
