"""Coding of boolean masks, exact both ways, in whichever of these forms takes the fewest bytes.

- `ones`: every entry is set.
- `bitmap`: one bit per entry in C order.
- `relative`: the gaps between set entries, as in Deep Compression (Han, Mao and Dally 2016, arXiv:1510.00149,
  section 2), where a gap too long for its code is filled up by extra codes; the codes are entropy coded.
- `neighbours`: each entry under the probability that its row, its column and the entries before it give it.

Each but the last may come behind a bitmap of the rows along the first axis that hold a set entry, as the mask of
those rows alone: after channel pruning that bitmap is all there is.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_compress.coding.bits import pack, packed_size, unpack
from lightning_compress.coding.entropy import decode_symbols, encode_symbols
from lightning_compress.coding.neighbours import decode_matrix, encode_matrix, likely_lag
from lightning_compress.coding.reader import Reader, varint

ONES, BITMAP, RELATIVE, NEIGHBOURS = range(4)
GAP_BITS = range(2, 9)
# The first byte: the form in 2 bits, whether a bitmap of the rows comes first, and 5 bits that the form reads.
_ROWS, _EXTRA = 4, 3
_TURNED, _INVERTED = 1, 2

_Bits = NDArray[np.bool_]


def encode_mask(mask: _Bits) -> bytes:
    """Code a mask of any shape in the fewest bytes; `decode_mask` reads it back.

    Raises:
        ValueError: `mask` is not boolean.

    Example:
        >>> mask = np.zeros((64, 9), bool)
        >>> mask[::16] = True
        >>> data = encode_mask(mask)
        >>> form_of(data), len(data)
        ('rows+ones', 9)
        >>> bool((decode_mask(Reader(data), (64, 9)) == mask).all())
        True
    """
    if mask.dtype != np.bool_:
        raise ValueError(f"expected a boolean mask, got dtype {mask.dtype}: write `weight != 0`")
    coded = [*_encode_entries(mask.reshape(-1), 0, b""), *_encode_matrices(mask)]
    if mask.ndim > 1:
        kept = np.asarray(mask.any(axis=tuple(range(1, mask.ndim))))
        if not kept.all():
            coded += _encode_entries(mask[kept].reshape(-1), _ROWS, pack(kept.astype(np.uint8), 1))
    return min(coded, key=len)


def form_of(data: bytes) -> str:
    """The form in which `encode_mask` wrote a mask: "ones", "bitmap", "relative", "neighbours", or "rows+" and one."""
    return ("rows+" if data[0] & _ROWS else "") + ("ones", "bitmap", "relative", "neighbours")[data[0] & 3]


def decode_mask(reader: Reader, shape: Sequence[int]) -> _Bits:
    """Read back a mask of `shape`: the inverse of `encode_mask`.

    Takes memory for `prod(shape)` entries and little more whatever the data says, so it is `shape` that the caller
    has to trust.

    Raises:
        ValueError: the form is unknown, the shape is negative, the data ends early, or an index lies beyond the end.

    Example:
        >>> decode_mask(Reader(bytes([0b1010, 2, 0, 0b0001])), (4,))
        array([False,  True,  True, False])
    """
    if any(length < 0 for length in shape):
        raise ValueError(f"expected a mask shape of lengths >= 0, got {tuple(shape)}")
    tag = reader.take(1)[0]
    form, extra = tag & 3, tag >> _EXTRA
    if not tag & _ROWS:
        if form == NEIGHBOURS:
            return _decode_matrix(reader, extra, shape)
        return _decode_entries(reader, form, extra, math.prod(shape)).reshape(tuple(shape))
    if not shape or form == NEIGHBOURS:
        raise ValueError(f"a mask of shape {tuple(shape)} begins with {tag}, which no form does")
    kept = unpack(reader.take(packed_size(shape[0], 1)), shape[0], 1).astype(np.bool_)
    mask = np.zeros(tuple(shape), np.bool_)
    inner = (int(kept.sum()), *shape[1:])
    mask[kept] = _decode_entries(reader, form, extra, math.prod(inner)).reshape(inner)
    return mask


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape of a tensor flattened to rows along its first axis.

    Example:
        >>> matrix_shape((4, 3, 5, 5)), matrix_shape((7,)), matrix_shape(())
        ((4, 75), (7, 1), (1, 1))
    """
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _tag(form: int, extra: int = 0, rows: int = 0) -> bytes:
    return bytes([form | rows | extra << _EXTRA])


def _encode_entries(mask: _Bits, rows: int, before: bytes) -> list[bytes]:
    if mask.all():
        return [_tag(ONES, rows=rows) + before]
    coded = [_tag(BITMAP, rows=rows) + before + pack(mask.astype(np.uint8), 1)]
    zeros = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    shortest = min(GAP_BITS, key=lambda bits: packed_size(_num_codes(zeros, bits), bits))
    for bits in {shortest, GAP_BITS[-1]}:
        codes = _gap_codes(zeros, bits)
        data = before + varint(len(codes)) + encode_symbols(codes, 1 << bits)
        coded.append(_tag(RELATIVE, bits - 1, rows) + data)
    return coded


def _encode_matrices(mask: _Bits) -> list[bytes]:
    """The mask under its neighbours, as it is and with columns for rows."""
    inverted = bool(mask.size) and np.count_nonzero(mask) * 2 > mask.size
    matrix = (~mask if inverted else mask).reshape(matrix_shape(mask.shape))
    coded = []
    for turned in (0, _TURNED):
        turn = matrix.T if turned else matrix
        lag = likely_lag(turn)
        data = encode_matrix(turn, lag)
        if data is not None:
            extra = turned | (_INVERTED if inverted else 0)
            coded.append(_tag(NEIGHBOURS, extra) + varint(lag) + varint(len(data)) + data)
    return coded


def _decode_matrix(reader: Reader, extra: int, shape: Sequence[int]) -> _Bits:
    if extra & ~(_TURNED | _INVERTED):
        raise ValueError(f"a mask under its neighbours is declared to be of kind {extra}, which there is not")
    rows, columns = matrix_shape(shape)
    lag = reader.varint()
    data = reader.take(reader.varint())
    mask = decode_matrix(data, (columns, rows), lag).T if extra & _TURNED else decode_matrix(data, (rows, columns), lag)
    return (~mask if extra & _INVERTED else mask).reshape(tuple(shape))


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


def _decode_entries(reader: Reader, form: int, extra: int, size: int) -> _Bits:
    """Decode the mask of `size` entries, without the rows."""
    if form == RELATIVE and extra + 1 in GAP_BITS:
        return _decode_relative(reader, size, extra + 1)
    if form == RELATIVE or extra:
        raise ValueError(f"a mask begins with form {form} and {extra}, which none does")
    if form == BITMAP:
        return unpack(reader.take(packed_size(size, 1)), size, 1).astype(np.bool_)
    return np.ones(size, np.bool_)


def _decode_relative(reader: Reader, size: int, bits: int) -> _Bits:
    count = reader.varint()
    if count > size:
        raise ValueError(f"{count} gap codes cannot fit in a mask of {size} entries: each covers at least one")
    codes = decode_symbols(reader, count, 1 << bits)
    filler = (1 << bits) - 1
    is_entry = codes != filler
    # A code of c zeros and one entry moves c + 1 places, a filler moves `filler` places.
    ends = np.cumsum(codes.astype(np.int64) + is_entry)
    if count and ends[-1] > size:
        raise ValueError(f"gap codes reach entry {ends[-1] - 1}, beyond the end of a mask of {size} entries")
    mask = np.zeros(size, np.bool_)
    mask[ends[is_entry] - 1] = True
    return mask
