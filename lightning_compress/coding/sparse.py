"""Coding of boolean masks, exact both ways, in whichever of these schemes gives the fewest bytes.

- `ones`: every entry is set; no bytes.
- `bitmap`: one bit per entry in C order, `ceil(n / 8)` bytes.
- `relative:<bits>:<codes>`: the gaps between set entries, as in Deep Compression (Han, Mao and Dally 2016,
  arXiv:1510.00149, section 2), where a gap too long for its code is filled up by extra codes.
- `rows+<one of these>`: a bitmap of the rows along the first axis that hold a set entry, then the mask of those
  rows alone. After channel pruning this is the bitmap of the channels and nothing else.

The scheme is a short string that a file's header keeps beside the bytes and the shape.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_compress.coding.bits import pack, packed_size, unpack

GAP_BITS = range(2, 9)
ROWS = "rows+"
_SCHEME = re.compile(r"(rows\+)?(ones|bitmap|relative:([2-8]):(0|[1-9]\d{0,17}))")


def encode_mask(mask: NDArray[np.bool_]) -> tuple[str, bytes]:
    """Code a mask of any shape in the fewest bytes; returns `(scheme, data)`, which `decode_mask` reads back.

    Raises:
        ValueError: `mask` is not boolean.

    Example:
        >>> mask = np.zeros((64, 9), bool)
        >>> mask[::16] = True
        >>> scheme, data = encode_mask(mask)
        >>> scheme, len(data)
        ('rows+ones', 8)
        >>> bool((decode_mask(scheme, data, (64, 9)) == mask).all())
        True
    """
    if mask.dtype != np.bool_:
        raise ValueError(f"expected a boolean mask, got dtype {mask.dtype}: write `weight != 0`")
    coded = [_encode_entries(mask.reshape(-1))]
    if mask.ndim > 1:
        kept = np.asarray(mask.any(axis=tuple(range(1, mask.ndim))))
        if not kept.all():
            scheme, data = _encode_entries(mask[kept].reshape(-1))
            coded.append((ROWS + scheme, pack(kept.astype(np.uint8), 1) + data))
    return min(coded, key=_cost)


def decode_mask(scheme: str, data: bytes, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Read back a mask of `shape`: the inverse of `encode_mask`.

    Takes memory for `prod(shape)` entries and no more than that whatever `scheme` and `data` say, so it is `shape`
    that the caller has to trust.

    Raises:
        ValueError: the scheme is unknown, the shape is negative, the number of bytes differs from what scheme and
            shape ask for, or an index lies beyond the end.

    Example:
        >>> decode_mask("relative:2:2", bytes([0b0001]), (4,))
        array([False,  True,  True, False])
    """
    match = _SCHEME.fullmatch(scheme)
    if match is None:
        raise ValueError(
            f"unknown mask scheme {scheme!r}: expected ones, bitmap or relative:<2-8>:<codes>, with or without {ROWS}"
        )
    if any(length < 0 for length in shape):
        raise ValueError(f"expected a mask shape of lengths >= 0, got {tuple(shape)}")
    size = math.prod(shape)
    if match[1] is None:
        return _decode_entries(match, data, size).reshape(tuple(shape))
    if not shape:
        raise ValueError(f"mask scheme {scheme!r} needs a first axis, got the shape ()")
    rows_size = packed_size(shape[0], 1)
    kept = unpack(data[:rows_size], shape[0], 1).astype(np.bool_)
    mask = np.zeros(tuple(shape), np.bool_)
    inner_shape = (int(kept.sum()), *shape[1:])
    mask[kept] = _decode_entries(match, data[rows_size:], math.prod(inner_shape)).reshape(inner_shape)
    return mask


def _cost(coded: tuple[str, bytes]) -> tuple[int, int]:
    """Bytes of the payload, ties broken by the shorter scheme."""
    return len(coded[1]), len(coded[0])


def _encode_entries(mask: NDArray[np.bool_]) -> tuple[str, bytes]:
    if mask.all():
        return "ones", b""
    zeros = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    sizes = {bits: packed_size(_num_codes(zeros, bits), bits) for bits in GAP_BITS}
    bits = min(sizes, key=sizes.__getitem__)
    if sizes[bits] >= packed_size(mask.size, 1):
        return "bitmap", pack(mask.astype(np.uint8), 1)
    return f"relative:{bits}:{_num_codes(zeros, bits)}", pack(_gap_codes(zeros, bits), bits)


def _num_codes(zeros: NDArray[np.intp], bits: int) -> int:
    return len(zeros) + int((zeros // ((1 << bits) - 1)).sum())


def _gap_codes(zeros: NDArray[np.intp], bits: int) -> NDArray[np.uint8]:
    """Code `c` below `2**bits - 1`: `c` zeros, then a set entry; the last code: that many zeros and no entry.

    The paper pads a long gap with a stored weight of zero. Here the filler is a code of its own, so the values that
    go with the mask need no padding.
    """
    filler = (1 << bits) - 1
    num_fillers = zeros // filler
    codes = np.full(_num_codes(zeros, bits), filler, np.uint8)
    codes[np.cumsum(num_fillers + 1) - 1] = zeros % filler
    return codes


def _decode_entries(match: re.Match[str], data: bytes, size: int) -> NDArray[np.bool_]:
    """Decode the mask of `size` entries, without the rows."""
    if match[2] == "bitmap":
        return unpack(data, size, 1).astype(np.bool_)
    if match[2] == "ones":
        if data:
            raise ValueError(f"expected 0 bytes for a mask of ones, got {len(data)}")
        return np.ones(size, np.bool_)
    return _decode_relative(data, size, bits=int(match[3]), count=int(match[4]))


def _decode_relative(data: bytes, size: int, *, bits: int, count: int) -> NDArray[np.bool_]:
    if count > size:
        raise ValueError(f"{count} gap codes cannot fit in a mask of {size} entries: each covers at least one")
    codes = unpack(data, count, bits)
    filler = (1 << bits) - 1
    is_entry = codes != filler
    # A code of c zeros and one entry moves c + 1 places, a filler moves `filler` places.
    ends = np.cumsum(codes.astype(np.int64) + is_entry)
    if count and ends[-1] > size:
        raise ValueError(f"gap codes reach entry {ends[-1] - 1}, beyond the end of a mask of {size} entries")
    mask = np.zeros(size, np.bool_)
    mask[ends[is_entry] - 1] = True
    return mask
