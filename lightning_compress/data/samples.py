"""One part (train, validation or test) of a labelled data set."""

from dataclasses import dataclass, replace
from typing import Protocol, Self, final

from torch import Tensor


class Part(Protocol):
    """Labelled samples that can be fetched by position, wherever they live."""

    @property
    def labels(self) -> Tensor:
        """Class of every sample, int64 `[N]`; of every position in it `[N, T]`."""

    @property
    def names(self) -> list[str]:
        """Name of every class."""

    def fetch(self, index: Tensor) -> Tensor:
        """Inputs at the positions `index` (int64 `[B]`): uint8 or float32 `[B, C, H, W]`, token ids int64 `[B, T]`."""

    def subset(self, index: Tensor) -> Self:
        """The part that holds only the positions `index`, in that order."""

    def labelled(self, labels: Tensor) -> Self:
        """The same samples with other labels, int64 `[N]` or `[N, heads]`."""


@final
@dataclass(frozen=True)
class Samples:
    """Samples held in memory: `inputs` uint8 or float32 `[N, C, H, W]`, `labels` int64 `[N]`.

    Texts are token ids: `inputs` int64 `[N, T]`, padded behind the `lengths` int64 `[N]`; where each token has a
    label of its own, `labels` is int64 `[N, T]`.

    >>> import torch
    >>> samples = Samples(torch.arange(3.0).view(3, 1, 1, 1), torch.tensor([0, 1, 0]), ["no", "yes"])
    >>> samples.subset(torch.tensor([2, 0])).fetch(torch.tensor([0])).item()
    2.0
    """

    inputs: Tensor
    labels: Tensor
    names: list[str]
    lengths: Tensor | None = None

    def fetch(self, index: Tensor) -> Tensor:
        """Inputs at the positions `index` (int64 `[B]`)."""
        return self.inputs.index_select(0, index)

    def subset(self, index: Tensor) -> "Samples":
        """A copy that holds only the positions `index`, in that order."""
        lengths = None if self.lengths is None else self.lengths.index_select(0, index)
        return Samples(self.fetch(index), self.labels.index_select(0, index), self.names, lengths)

    def labelled(self, labels: Tensor) -> "Samples":
        """The same samples with other labels, int64 `[N]` or `[N, heads]`."""
        return replace(self, labels=labels)
