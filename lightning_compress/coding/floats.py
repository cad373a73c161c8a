"""Float32 numbers in fewer than four bytes each, bit for bit.

A float is its sign and exponent, coded as one symbol since few of them occur, and its 23 bits of mantissa, written as
they are less the zeros that all of them end in. Numbers on a grid, as quantized levels are, take the whole number
that each is of steps instead; those an equal step apart take a first one and that step.
"""

import numpy as np
from numpy.typing import NDArray

from lightning_compress.coding.bits import pack, packed_size, unpack
from lightning_compress.coding.entropy import decode_symbols, encode_symbols
from lightning_compress.coding.reader import Reader

RAW, SPLIT, GRID, SEQUENCE = range(4)
FORMS = ("raw", "split", "grid", "sequence")
_MANTISSA, _LONGEST_GRID, _MOST_ON_GRID = 23, 127, 1 << 12
_FAR_OFF = 1e-5

_Floats = NDArray[np.float32]


def encode_floats(values: _Floats) -> bytes:
    """Code float32 numbers of any shape in the fewest bytes; a single one takes its four.

    Example:
        >>> data = encode_floats(np.arange(-8, 8, dtype=np.float32) / 8)
        >>> form_of(data), len(data)
        ('sequence', 9)
        >>> decode_floats(Reader(data), 16)[:2]
        array([-1.   , -0.875], dtype=float32)
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    raw = flat.astype("<f4").tobytes()
    if flat.size < 2:
        return raw
    coded = [bytes([RAW]) + raw, _encode_split(flat)]
    if np.isfinite(flat).all():
        coded += [data for data in (_encode_sequence(flat), _encode_grid(flat)) if data]
    return min(coded, key=len)


def form_of(data: bytes) -> str:
    """How `encode_floats` wrote two numbers or more: "raw", "split", "grid" or "sequence"."""
    return FORMS[data[0] & 3]


def decode_floats(reader: Reader, count: int) -> _Floats:
    """Read back `count` numbers, 1-D: the inverse of `encode_floats`.

    Raises:
        ValueError: the data is damaged, or not that of so many numbers.
    """
    if count < 2:
        return _plain(reader, count)
    tag = reader.take(1)[0]
    form, extra = tag & 3, tag >> 2
    if form == SPLIT and extra <= _MANTISSA:
        return _decode_split(reader, count, extra)
    if form == SEQUENCE and extra < 4:
        first, step = _plain(reader, 2)
        return _sequence(first, step, count, extra)
    if extra:
        raise ValueError(f"a stretch of floats begins with {tag}, which none does")
    if form == GRID:
        step = _plain(reader, 1)[0]
        return _grid(decode_symbols(reader, count, 2 * _LONGEST_GRID + 1) - _LONGEST_GRID, step)
    return _plain(reader, count)


def _plain(reader: Reader, count: int) -> _Floats:
    return np.frombuffer(reader.take(4 * count), "<f4").astype(np.float32)


def _same(first: _Floats, second: _Floats) -> bool:
    """Bit for bit: zeros of either sign differ."""
    return bool((first.view(np.uint32) == second.view(np.uint32)).all())


def _encode_split(values: _Floats) -> bytes:
    words = values.view(np.uint32)
    words = words[words != 0]
    high, low = words >> _MANTISSA, words & ((1 << _MANTISSA) - 1)
    together = int(np.bitwise_or.reduce(low))
    dropped = (together & -together).bit_length() - 1 if together else _MANTISSA
    exponents = high & 255
    least, most = (int(exponents.min()), int(exponents.max())) if words.size else (0, 0)
    # 0 is for zero itself, which has no mantissa; then come the exponents, for either sign.
    symbols = np.zeros(values.size, np.int64)
    symbols[values.view(np.uint32) != 0] = 1 + 2 * (exponents.astype(np.int64) - least) + (high >> 8)
    head = bytes([SPLIT | dropped << 2, least, most - least])
    body = encode_symbols(symbols, 3 + 2 * (most - least))
    return head + body + (pack(low >> dropped, _MANTISSA - dropped) if dropped < _MANTISSA else b"")


def _decode_split(reader: Reader, count: int, dropped: int) -> _Floats:
    least, span = reader.take(2)
    if least + span > 255:
        raise ValueError(f"a float has an exponent of {least + span}, at most 255 is possible")
    symbols = decode_symbols(reader, count, 3 + 2 * span).astype(np.uint32)
    words = np.zeros(count, np.uint32)
    there = symbols != 0
    exponents, signs = np.divmod(symbols[there] - 1, 2)
    kept, bits = int(there.sum()), _MANTISSA - dropped
    low = unpack(reader.take(packed_size(kept, bits)), kept, bits).astype(np.uint32) << dropped if bits else 0
    words[there] = signs << 31 | (exponents + least) << _MANTISSA | low
    return words.view(np.float32)


def _sequence(first: np.float32, second: np.float32, count: int, rule: int) -> _Floats:
    """Evenly spaced numbers, by one of the ways in which rounding differs.

    `first + i * second` rounded once (0) or in float32 (1); `i / (count - 1) * second + first` in float32 (2), as
    affine levels are; from `first` to `second`, worked out from the nearer end (3), as `torch.linspace` has it.
    """
    places = np.arange(count).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if rule == 1:
            return first + places * second
        if rule == 2:
            return places / np.float32(count - 1) * second + first
        if rule == 0:
            return _once(first, second, places)
        step = (second - first) / np.float32(count - 1)
        return np.where(places < count // 2, _once(first, step, places), _once(second, -step, places[::-1]))


def _once(first: np.float32, step: np.float32, places: _Floats) -> _Floats:
    exact: NDArray[np.float64] = np.float64(first) + np.float64(step) * places
    return exact.astype(np.float32)


def _encode_sequence(values: _Floats) -> bytes | None:
    first, last = values[0], values[-1]
    # Most are no sequence, which one of them tells at once: it is off by far more than rounding explains.
    place, (low, high) = len(values) // 2, (float(first), float(last))
    off = abs(float(values[place]) - (low + (high - low) * place / (len(values) - 1)))
    if off > _FAR_OFF * (abs(low) + abs(high)):
        return None
    with np.errstate(over="ignore"):
        step = np.float32((last - first) / np.float32(len(values) - 1))
        guesses = ((0, step), (1, step), (2, last - first), (3, last))
    for rule, guess in guesses:
        for second in (guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))):
            if np.isfinite(second) and _same(_sequence(first, second, len(values), rule), values):
                return bytes([SEQUENCE | rule << 2]) + np.array([first, second]).astype("<f4").tobytes()
    return None


def _grid(places: NDArray[np.integer], step: np.float32) -> _Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return places.astype(np.float32) * step


def _encode_grid(values: _Floats) -> bytes | None:
    """The whole numbers up to 127 that the values are of the largest step that there is for them, if there is one."""
    largest = np.abs(values).max()
    if not largest or values.size > _MOST_ON_GRID:
        return None
    for longest in range(1, _LONGEST_GRID + 1):
        guess = np.float32(largest / np.float32(longest))
        if not guess or not np.isfinite(values / guess).all():
            return None
        places = np.rint(values / guess).astype(np.int64)
        for step in (guess, np.nextafter(guess, np.float32(0)), np.nextafter(guess, np.float32(np.inf))):
            if _same(_grid(places, step), values):
                head: bytes = bytes([GRID]) + step.astype("<f4").tobytes()
                return head + encode_symbols(places + _LONGEST_GRID, 2 * _LONGEST_GRID + 1)
    return None
