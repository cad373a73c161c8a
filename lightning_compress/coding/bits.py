"""Fixed-width packing: unsigned codes of 1 to 24 bits laid end to end, no gap between them.

Layout: code `i` fills bits `i * bits` to `(i + 1) * bits - 1` of the stream, lowest bit first, and bit `j` of
the stream is bit `j % 8` of byte `j // 8`. The last byte is filled up with zeros.
"""

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 24


def packed_size(count: int, bits: int) -> int:
    """Number of bytes that `count` codes of `bits` bits take: `ceil(count * bits / 8)`.

    Raises:
        ValueError: `bits` is not in 1..24, or `count` is negative.

    Example:
        >>> packed_size(5, 3)
        2
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"expected bits in 1..{MAX_BITS}, got {bits}")
    if count < 0:
        raise ValueError(f"expected a count of codes >= 0, got {count}")
    return -(-count * bits // 8)


def pack(codes: NDArray[np.integer], bits: int) -> bytes:
    """Pack integer codes into `ceil(n * bits / 8)` bytes.

    `codes` has any shape and any integer dtype; it is read in C order.

    Raises:
        ValueError: `bits` is not in 1..24, `codes` does not hold integers, or a code is outside `0..2**bits - 1`.

    Example:
        >>> pack(np.array([1, 2, 3]), bits=4).hex()
        '2103'
    """
    size = packed_size(codes.size, bits)
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"expected an array of integer codes, got dtype {codes.dtype}: round and cast it first")
    if codes.size and (codes.min() < 0 or codes.max() >= 1 << bits):
        raise ValueError(
            f"expected codes in 0..{(1 << bits) - 1} ({bits} bits), got {codes.min()}..{codes.max()}: "
            "shift signed codes by their minimum or raise bits"
        )
    # Eight codes fill exactly `bits` bytes, so the loop runs over the 8 places of a group, never over the codes.
    groups = np.zeros((-(-codes.size // 8), 8), np.uint32)
    groups.reshape(-1)[: codes.size] = codes.reshape(-1)
    out = np.zeros((len(groups), bits), np.uint8)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        shifted = groups[:, place] << shift
        for byte in range(_spanned(shift, bits)):
            out[:, first + byte] |= (shifted >> (8 * byte)).astype(np.uint8)
    return out.tobytes()[:size]


def unpack(data: bytes, count: int, bits: int) -> NDArray[np.unsignedinteger]:
    """Read back `count` codes of `bits` bits: the inverse of `pack`.

    Returns a 1-D array, uint8 up to 8 bits, uint16 up to 16 and uint32 above. Memory is taken only once the length of
    `data` fits.

    Raises:
        ValueError: `bits` is not in 1..24, `count` is negative, or `data` is not `ceil(count * bits / 8)` bytes.

    Example:
        >>> unpack(bytes.fromhex("2103"), count=3, bits=4)
        array([1, 2, 3], dtype=uint8)
    """
    size = packed_size(count, bits)
    if len(data) != size:
        raise ValueError(f"expected {size} bytes for {count} codes of {bits} bits, got {len(data)}")
    raw = np.zeros((-(-count // 8), bits), np.uint8)
    raw.reshape(-1)[:size] = np.frombuffer(data, np.uint8)
    codes = np.empty((len(raw), 8), np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)
    for place in range(8):
        first, shift = divmod(place * bits, 8)
        value = raw[:, first].astype(np.uint32)
        for byte in range(1, _spanned(shift, bits)):
            value |= raw[:, first + byte].astype(np.uint32) << (8 * byte)
        codes[:, place] = (value >> shift) & ((1 << bits) - 1)
    return codes.reshape(-1)[:count]


def _spanned(shift: int, bits: int) -> int:
    """Number of bytes that a code touches when it starts at bit `shift` of the first one."""
    return -(-(shift + bits) // 8)
