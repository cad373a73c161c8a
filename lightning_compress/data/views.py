"""A few random views of each sample that come back, so that what is computed from one can be kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.data.augment import Augment
from lightning_compress.data.order import mix

#: Neighbours in the data set whose random numbers are drawn together.
BLOCK = 500


def block(images: Tensor, augment: Sequence[Augment], *, seed: int, view: int, number: int) -> Tensor:
    """Block `number` of the stored `images` [<= BLOCK, C, H, W] as its `view`, counted from 1, shows it.

    >>> from lightning_compress.data.augment import Jitter
    >>> images = torch.arange(9.0).view(1, 1, 3, 3)
    >>> once, again = (block(images, [Jitter(1)], seed=0, view=1, number=0) for _ in range(2))
    >>> torch.equal(once, again)
    True
    """
    generator = torch.Generator().manual_seed(mix(seed, view, number))
    for transform in augment:
        images = transform(images, generator)
    return images
