"""Which samples form which batch: a pure function of seed, epoch and rank."""

import hashlib
import math
import struct
from collections.abc import Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor

#: Batches whose samples are sorted by length together: enough for little padding, few enough to keep batches mixed.
POOL = 50


class Draw(NamedTuple):
    """One batch to make: its number in the epoch, the seed of its random transforms, its sample positions.

    `length` is how much of padded samples the batch needs, None where samples are not padded.
    """

    number: int
    seed: int
    positions: Tensor
    length: int | None = None


@final
class BatchOrder:
    """The batches of one rank, epoch after epoch.

    Serves as a loader's `sampler`: the trainer calls `set_epoch` before each epoch, so the order after a resume
    is right without any saved state; the saved state is needed only to go on inside an epoch. The shards of the
    ranks partition the epoch's permutation and every rank makes the same number of batches, none of them empty.

    Args:
        count: number of samples.
        batch_size: samples per batch and rank.
        shuffle: whether each epoch has its own permutation; off, the samples come in their stored order.
        seed: seed of permutations and transforms.
        drop_last: leave out the samples that do not fill a batch on every rank.
        shard: rank and number of ranks.
        lengths: of every sample where they are padded, int64 `[count]`. Shuffled batches are then made of samples of
            about the same length: those of `POOL` batches are sorted, and the batches come in random order.

    Raises:
        ValueError: if there are too few samples to give every rank each of its batches.

    >>> [draw.positions.tolist() for draw in BatchOrder(5, 2).draws()]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
        lengths: Tensor | None = None,
    ) -> None:
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.rank, self.world_size = shard
        self.lengths = lengths
        self.epoch = 0
        self.done = 0  # batches of this epoch handed out so far; kept by the loader, which may read ahead
        self._first = 0
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        smallest = count // self.world_size
        largest = math.ceil(count / self.world_size)
        self._length = smallest // batch_size if drop_last else math.ceil(largest / batch_size)
        if not 0 < self._length <= smallest:
            raise ValueError(
                f"{count} samples cannot give each of {self.world_size} ranks the same number of batches of "
                f"{batch_size}{' with drop_last' if drop_last else ''}: use another batch size or fewer ranks"
            )

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation of the next pass."""
        if epoch != self.epoch:
            self.epoch, self.done, self._first = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were handed out."""
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next pass through the same epoch start where the saved one stopped."""
        self.epoch, self.done = state["epoch"], state["done"]
        self._first = self.done % self._length

    def draws(self, device: torch.device | str = "cpu") -> Iterator[Draw]:
        """The batches of this epoch, positions on `device`; the epoch is read at the first `next`."""
        epoch, first, self._first = self.epoch, self._first, 0
        shard = self._shard(epoch)
        placed = shard.to(device)
        for number in range(first, self._length):
            part = slice(self._start(number, len(shard)), self._start(number + 1, len(shard)))
            length = None if self.lengths is None else _rounded(int(self.lengths[shard[part]].max()))
            yield Draw(number, mix(self.seed, epoch, self.rank + 1, number), placed[part], length)

    def _start(self, number: int, available: int) -> int:
        # A shard one sample shorter than the others leaves that sample for its last batch.
        return min(number * self.batch_size, available - (self._length - number))

    def _shard(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.rank, self.count, self.world_size)
        # Drawn on the CPU: the order must not depend on the device.
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        shard = torch.randperm(self.count, generator=generator)[self.rank :: self.world_size]
        return shard if self.lengths is None else self._bucketed(shard, self.lengths, generator)

    def _bucketed(self, shard: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """The shard with neighbours of about the same length; what fills no batch stays as it was drawn, at the end."""
        batches = len(shard) // self.batch_size
        whole, rest = shard[: batches * self.batch_size], shard[batches * self.batch_size :]
        pools = [pool[lengths[pool].argsort(stable=True)] for pool in torch.split(whole, POOL * self.batch_size)]
        rows = torch.cat(pools).view(batches, self.batch_size)
        return torch.cat([rows[torch.randperm(batches, generator=generator)].flatten(), rest])


def _rounded(length: int) -> int:
    """Up to a multiple of 8: a compiled model sees few shapes."""
    return -(-length // 8) * 8


def mix(*numbers: int) -> int:
    """A 63-bit seed from integers; torch's CPU generator uses only the low 32 bits, so all must be mixed.

    >>> mix(1, 2) == mix(2, 1)
    False
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
