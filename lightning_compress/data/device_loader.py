"""Batches from samples that live on the training device."""

from collections.abc import Iterator, Sequence
from typing import Self, final

import torch
from torch import Tensor

from lightning_compress.data.augment import Augment
from lightning_compress.data.batch import Batch
from lightning_compress.data.normalize import Normalize
from lightning_compress.data.order import BatchOrder
from lightning_compress.data.samples import Samples
from lightning_compress.data.views import BLOCK, block


@final
class DeviceLoader:
    """Yields `Batch`es from resident samples: selected, augmented and normalised on the device.

    The batches are a pure function of the order's seed, epoch and rank; the global random state is never used.

    Args:
        samples: what to draw from; moved to the device at the first batch.
        order: which samples form which batch.
        normalize: how stored pixels become inputs.
        augment: random transforms, applied in this order before normalisation.
        views: if given, each sample has only so many random views; all are shown in the first one in the first epoch,
            and so on, over and over. One view of all samples is held in memory beside the samples.
        channels_last: whether inputs are laid out channels last.

    >>> samples = Samples(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]), ["a", "b"])
    >>> loader = DeviceLoader(samples, BatchOrder(3, 2), normalize=Normalize((0.0,), (1.0,), 1.0))
    >>> [batch.targets.tolist() for batch in loader]
    [[0, 1], [0]]
    """

    batch_sampler = None  # read by the trainer wherever a loader has a `sampler`

    def __init__(
        self,
        samples: Samples,
        order: BatchOrder,
        *,
        normalize: Normalize,
        augment: Sequence[Augment] = (),
        views: int | None = None,
        channels_last: bool = False,
    ) -> None:
        self.sampler = order
        self.normalize = normalize
        self.augment = tuple(augment)
        self.views = views if augment else None
        self.channels_last = channels_last
        self._samples = samples
        self._device = torch.device("cpu")
        self._resident: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def to(self, device: torch.device | str) -> Self:
        """Sets the device; nothing moves before the first batch."""
        self._device, self._resident = torch.device(device), None
        return self

    def state_dict(self) -> dict[str, int]:
        """Where in the epoch this loader is; makes it resumable inside an epoch."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on inside the saved epoch."""
        self.sampler.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that the epoch is read at the first batch: the trainer asks for an iterator before it
        # tells the sampler which epoch this is.
        inputs, labels = self._move()
        tokens = inputs.dtype == torch.int64
        number = 1 + self.sampler.epoch % self.views if self.views else -1 if self.augment else 0
        view = torch.full((self.sampler.batch_size,), number, device=self._device)
        inputs = self._viewed(inputs, number) if self.views else inputs
        anew = () if self.views else self.augment
        generator, affine = torch.Generator(), None
        for draw in self.sampler.draws(self._device):
            stored = inputs if draw.length is None else inputs[:, : draw.length]
            images = self._layout(stored.index_select(0, draw.positions))
            if anew:
                generator.manual_seed(draw.seed)
            for transform in anew:
                images = transform(images, generator)
            self.sampler.done = draw.number + 1
            if not tokens:
                affine = affine or self.normalize.affine(images[:1])
                scale, shift = affine
                images = images.float().mul_(scale).add_(shift)  # in place: `images` is this batch's own copy
            yield Batch(images, labels.index_select(0, draw.positions), draw.positions, view[: len(images)])

    def _move(self) -> tuple[Tensor, Tensor]:
        if self._resident is None:
            inputs = self._samples.inputs.to(self._device)
            # Stored in the wanted layout: converting each batch costs many times more than selecting it.
            inputs = inputs.permute(0, 2, 3, 1).contiguous() if self.channels_last else inputs
            self._resident = inputs, self._samples.labels.to(self._device)
        return self._resident

    def _viewed(self, inputs: Tensor, view: int) -> Tensor:
        """All samples in one view, in the layout that they are stored in."""
        seed = self.sampler.seed
        parts = [
            block(self._layout(part), self.augment, seed=seed, view=view, number=number)
            for number, part in enumerate(torch.split(inputs, BLOCK))
        ]
        whole = torch.cat(parts)
        return whole.permute(0, 2, 3, 1).contiguous() if self.channels_last else whole

    def _layout(self, stored: Tensor) -> Tensor:
        return stored.permute(0, 3, 1, 2) if self.channels_last else stored
