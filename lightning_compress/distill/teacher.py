"""The teacher: frozen, in eval mode, known by hash, never in a checkpoint; outputs kept where they stay the same."""

import hashlib
from collections.abc import Callable, Iterable
from typing import final

import torch
from torch import Tensor, nn

from lightning_compress.core.tap import Taps


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits of the SHA-256 over names, shapes and values of every tensor.

    >>> fingerprint(nn.Identity())
    'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@final
class Teacher:
    """Runs a frozen `model` under `no_grad`, on the device of what it is given.

    With `cache`, each sample's output is computed once and kept: correct only while a sample looks the same each time.
    `outputs` [samples, ...] are kept from the start, and the model never runs. With `compile` it runs compiled. What
    the submodules that `tap` names put out in the last batch is in `features`.

    Raises:
        ValueError: `cache` is on and a batch was changed at random; `outputs` without `cache`.

    >>> teacher = Teacher(nn.Linear(2, 3), cache=True)
    >>> teacher(torch.ones(1, 2), torch.tensor([0]), torch.tensor([0])).shape
    torch.Size([1, 3])
    """

    def __init__(
        self, model: nn.Module, *, cache: bool = False, outputs: Tensor | None = None, compile: bool = False
    ) -> None:
        if outputs is not None and not cache:
            raise ValueError("Distill: outputs are what cache=true keeps; write cache=true, or leave outputs away")
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._call: Callable[..., Tensor] = torch.compile(self.model) if compile else self.model
        self.hash = fingerprint(model)
        self.cache = cache
        self._outputs = outputs
        self._kept: Tensor | None = None
        self._known: Tensor | None = None
        self._device: torch.device | None = None
        self.features: dict[str, Tensor] = {}

    def tap(self, names: Iterable[str]) -> None:
        """Keep in `features` what the submodules called `names` put out."""
        self.features = Taps(self.model, names).features

    @torch.no_grad()
    def __call__(self, inputs: Tensor, index: Tensor | None = None, view: Tensor | None = None) -> Tensor:
        """The teacher's outputs for a batch."""
        if self._device != inputs.device:
            self._move(inputs.device)
        if not self.cache:
            return self._call(inputs)
        if index is None or view is None or bool((view != 0).any()):
            raise ValueError(
                "Distill: cache=True needs batches with a sample index and no random transform; "
                "got augmented or unindexed ones: write cache=false, or turn the augmentation off"
            )
        return self._cached(inputs, index)

    def _move(self, device: torch.device) -> None:
        self._device, self._kept, self._known = device, None, None
        if self._outputs is None:
            self.model.to(device)
        else:
            self._outputs = self._outputs.to(device)

    def _cached(self, inputs: Tensor, index: Tensor) -> Tensor:
        if self._outputs is not None:
            return self._outputs[index]
        size = 1 + int(index.max())
        if self._known is None or size > len(self._known):
            self._known = _grown(self._known, torch.zeros(2 * size, dtype=torch.bool, device=inputs.device))
        new = ~self._known[index]
        if bool(new.any()):
            outputs = self.model(inputs[new])
            if self._kept is None or len(self._kept) < len(self._known):
                self._kept = _grown(self._kept, outputs.new_zeros(len(self._known), *outputs.shape[1:]))
            self._kept[index[new]] = outputs.to(self._kept.dtype)
            self._known[index[new]] = True
        assert self._kept is not None
        return self._kept[index]


def _grown(old: Tensor | None, new: Tensor) -> Tensor:
    """`new`, with what `old` held at its start."""
    if old is not None:
        new[: len(old)] = old
    return new
