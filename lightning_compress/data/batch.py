"""The record every data loader yields."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch of samples.

    `inputs` is float32 `[B, ...]` (normalised), or token ids int64 `[B, T]`; `targets` is int64 `[B]`, `[B, heads]` in
    the order of their names where the data has heads, or `[B, T]` where each token has one; `index` is int64 `[B]`, the
    position of each sample in its part (train, validation or test) of the data set; `view` is int64 `[B]`: 0 where no
    random transform touched the sample, 1 up to the loader's number of `views` where that one of them did, -1 where one
    did that will not come back, so that nothing computed from it may be cached.

    >>> import torch
    >>> batch = Batch(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([7, 4]), torch.zeros(2).long())
    >>> batch.index.tolist()
    [7, 4]
    """

    inputs: Tensor
    targets: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    view: Tensor
