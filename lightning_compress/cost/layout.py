"""What a shared network takes in the layout of Deep Compression, to hold against that paper's tables."""

from collections.abc import Mapping

import numpy as np

from lightning_compress.coding.paper import encode_layer
from lightning_compress.core.stored import Stored

#: The paper's for its MNIST networks (tables 2 and 3).
INDEX_BITS = 5


def layout_bytes(stored: Mapping[str, Stored], *, coded: bool) -> int | None:
    """Bytes of all tensors in the layout of Han, Mao and Dally 2016 (arXiv:1510.00149), Huffman codes included or not.

    A tensor that shares values takes their codes, distances of 5 bits and the values; another one is in float32. None
    where nothing is shared, or in a way that the layout does not know: values of several weights, or times a scale.

    >>> import torch
    >>> weight = Stored(torch.zeros(40)).chosen(torch.zeros(40), torch.tensor([0.0, 1.0]))
    >>> layout_bytes({"weight": weight, "bias": Stored(torch.zeros(3))}, coded=False)
    21
    """
    shared = [tensor for tensor in stored.values() if tensor.levels is not None]
    if not shared or not all(_fits(tensor) for tensor in shared):
        return None
    return sum(_bytes(tensor, coded) for tensor in stored.values())


def _fits(tensor: Stored) -> bool:
    assert tensor.levels is not None
    return tensor.levels.dim() == 1 and (tensor.scale is None or bool((tensor.scale == 1).all()))


def _bytes(tensor: Stored, coded: bool) -> int:
    if tensor.levels is None:
        return 4 * tensor.value.numel()
    # Zero, which fills distances that are too long, is one of the values, and their number is a power of two.
    levels = np.union1d(tensor.levels.numpy(), np.zeros(1, np.float32))
    padded = np.pad(levels, (0, (1 << max(1, (len(levels) - 1).bit_length())) - len(levels)))
    return len(encode_layer(tensor.value.numpy(), padded, index_bits=INDEX_BITS, coded=coded))
