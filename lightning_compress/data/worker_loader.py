"""The same batches from worker processes, for data that does not fit in memory."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_compress.data.augment import Augment
from lightning_compress.data.batch import Batch
from lightning_compress.data.normalize import Normalize
from lightning_compress.data.order import BatchOrder, Draw
from lightning_compress.data.samples import Part


@final
class WorkerLoader:
    """Yields the batches a `DeviceLoader` would, fetched and transformed by worker processes.

    Not a `DataLoader` itself, so that a trainer leaves its order and its sharding alone.

    Args:
        part: what to draw from.
        order: which samples form which batch.
        normalize: how stored pixels become inputs.
        augment: random transforms, applied in this order before normalisation.
        workers: number of worker processes; 0 works in this one.
        pin_memory: whether batches are made in pinned memory, for a faster copy to a GPU.

    >>> from lightning_compress.data.samples import Samples
    >>> samples = Samples(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]), ["a", "b"])
    >>> loader = WorkerLoader(samples, BatchOrder(3, 2), normalize=Normalize((0.0,), (1.0,), 1.0))
    >>> [batch.targets.tolist() for batch in loader]
    [[0, 1], [0]]
    """

    batch_sampler = None  # read by the trainer wherever a loader has a `sampler`

    def __init__(
        self,
        part: Part,
        order: BatchOrder,
        *,
        normalize: Normalize,
        augment: Sequence[Augment] = (),
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.sampler = order
        self._batches = DataLoader(
            _Batches(part, normalize, tuple(augment)),
            batch_size=None,
            sampler=_Draws(order),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def state_dict(self) -> dict[str, int]:
        """Where in the epoch this loader is; makes it resumable inside an epoch."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on inside the saved epoch."""
        self.sampler.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        # Counted here: the workers read ahead of what was handed out.
        for number, batch in self._batches:
            self.sampler.done = number + 1
            yield batch


class _Draws:
    """Makes the order of the current epoch iterable again and again."""

    def __init__(self, order: BatchOrder) -> None:
        self._order = order

    def __iter__(self) -> Iterator[Draw]:
        return iter(self._order.draws())

    def __len__(self) -> int:
        return len(self._order)


class _Batches(Dataset[tuple[int, Batch]]):
    """Turns a draw into a batch."""

    def __init__(self, part: Part, normalize: Normalize, augment: tuple[Augment, ...]) -> None:
        self._part, self._normalize, self._augment = part, normalize, augment

    def __getitem__(self, draw: Draw) -> tuple[int, Batch]:
        number, seed, index, _ = draw
        images = self._part.fetch(index)
        generator = torch.Generator().manual_seed(seed)
        for transform in self._augment:
            images = transform(images, generator)
        view = torch.full_like(index, -1 if self._augment else 0)
        return number, Batch(self._normalize(images), self._part.labels[index], index, view)
