"""The teacher: frozen, in eval mode, known by hash, never in a checkpoint; outputs kept where they stay the same."""

import hashlib
from typing import final

import torch
from torch import Tensor, nn


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

    Raises:
        ValueError: `cache` is on and a batch was changed at random.

    >>> teacher = Teacher(nn.Linear(2, 3), cache=True)
    >>> teacher(torch.ones(1, 2), torch.tensor([0]), torch.tensor([0])).shape
    torch.Size([1, 3])
    """

    def __init__(self, model: nn.Module, *, cache: bool = False) -> None:
        self.model = model.eval().requires_grad_(False)
        self.hash = fingerprint(model)
        self.cache = cache
        self._kept: Tensor | None = None
        self._known: Tensor | None = None
        self._device: torch.device | None = None

    @torch.no_grad()
    def __call__(self, inputs: Tensor, index: Tensor | None = None, view: Tensor | None = None) -> Tensor:
        """The teacher's outputs for a batch."""
        if self._device != inputs.device:
            self.model.to(inputs.device)
            self._device = inputs.device
        if not self.cache:
            return self.model(inputs)  # type: ignore[no-any-return]
        if index is None or view is None or bool((view != 0).any()):
            raise ValueError(
                "Distill: cache=True needs batches with a sample index and no random transform; "
                "got augmented or unindexed ones: write cache=false, or turn the augmentation off"
            )
        return self._cached(inputs, index)

    def _cached(self, inputs: Tensor, index: Tensor) -> Tensor:
        kept, known = self._kept, self._known
        if kept is None or known is None or int(index.max()) >= len(known):
            kept, known = self._grow(self.model(inputs), 1 + int(index.max()))
        if not bool(known[index].all()):
            kept[index] = self.model(inputs).to(kept.dtype)
            known[index] = True
        return kept[index]

    def _grow(self, outputs: Tensor, size: int) -> tuple[Tensor, Tensor]:
        kept = outputs.new_zeros(2 * size, *outputs.shape[1:])
        known = torch.zeros(2 * size, dtype=torch.bool, device=outputs.device)
        if self._kept is not None and self._known is not None:
            kept[: len(self._kept)] = self._kept
            known[: len(self._known)] = self._known
        self._kept, self._known = kept, known
        return kept, known
