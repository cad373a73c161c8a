"""The layout of Deep Compression (Han, Mao and Dally 2016, arXiv:1510.00149), written for real to compare with.

A weight that is kept takes a code of n bits that chooses one of 2^n shared values, and the distance from the one
before it, in a few bits. Where that is too long, a weight of zero is stored in between. The shared values and the
biases are float32. Section 3 of the paper; with `coded`, codes and distances each take a Huffman code (section 4).
"""

import numpy as np
from numpy.typing import NDArray

from lightning_compress.coding.bits import pack, packed_size, unpack
from lightning_compress.coding.entropy import HUFFMAN, RAW, decode_symbols, encode_symbols
from lightning_compress.coding.reader import Reader, varint

_CODED = (HUFFMAN, RAW)  # the latter where there is no Huffman code: of one symbol


def encode_layer(
    weights: NDArray[np.float32], levels: NDArray[np.float32], *, index_bits: int, coded: bool = False
) -> bytes:
    """Code a layer whose weights, of any shape, are all among `levels`, zero for those that are pruned among them.

    The number of levels is a power of two from 2 to 65,536.

    Raises:
        ValueError: a weight is not among the levels, zero is not, or their number is not such a power.

    Example:
        >>> weights = np.array([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], np.float32)
        >>> data = encode_layer(weights, np.array([0, 1, 2, 3], np.float32), index_bits=3)
        >>> len(data), decode_layer(data, 12, num_levels=4, index_bits=3)[[1, 11]]
        (20, array([1., 2.], dtype=float32))
    """
    order = np.argsort(levels, kind="stable")
    flat = weights.reshape(-1)
    codes = order[np.minimum(np.searchsorted(levels, flat, sorter=order), len(levels) - 1)]
    zero = np.flatnonzero(levels == 0)
    if len(levels) != 1 << _code_bits(len(levels)) or not zero.size or (levels[codes] != flat).any():
        raise ValueError(f"expected weights among 2^n levels, zero one of them, got {len(levels)} levels")
    kept = np.flatnonzero(flat)
    distances = np.diff(kept, prepend=-1) - 1
    fillers = distances >> index_bits
    ends = np.cumsum(fillers + 1) - 1
    number = int(ends[-1]) + 1 if kept.size else 0
    # A filler stands as far away as can be said.
    index = np.full(number, (1 << index_bits) - 1)
    index[ends] = distances & ((1 << index_bits) - 1)
    chosen = np.full(number, zero[0])
    chosen[ends] = codes[kept]
    if coded:
        stream = encode_symbols(index, 1 << index_bits, schemes=_CODED)
        stream += encode_symbols(chosen, len(levels), schemes=_CODED)
    else:
        stream = pack(index, index_bits) + pack(chosen, _code_bits(len(levels)))
    return varint(number) + stream + levels.astype("<f4").tobytes()


def decode_layer(
    data: bytes, size: int, *, num_levels: int, index_bits: int, coded: bool = False
) -> NDArray[np.float32]:
    """Read back the weights, 1-D: the inverse of `encode_layer`.

    Raises:
        ValueError: the data is not that of a layer of so many weights.
    """
    reader = Reader(data)
    number, bits = reader.varint(), _code_bits(num_levels)

    def stream(width: int, alphabet: int) -> NDArray[np.integer]:
        if coded:
            return decode_symbols(reader, number, alphabet)
        return unpack(reader.take(packed_size(number, width)), number, width)

    index, chosen = stream(index_bits, 1 << index_bits), stream(bits, num_levels)
    levels = np.frombuffer(reader.take(4 * num_levels), "<f4").astype(np.float32)
    places = np.cumsum(index.astype(np.int64) + 1) - 1
    if number and places[-1] >= size:
        raise ValueError(f"an index reaches weight {places[-1]} of {size}")
    weights = np.zeros(size, np.float32)
    weights[places] = levels[chosen]
    return weights


def _code_bits(num_levels: int) -> int:
    return max(1, (num_levels - 1).bit_length())
