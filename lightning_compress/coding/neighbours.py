"""Masks and codes of a matrix under a model of where weights survive pruning, exact both ways.

Weights that survive lie in some rows and columns rather than in others, and beside each other where the inputs of a
layer are pixels. The matrix is read column by column; the probability of an entry follows from how full its row has
been so far, how full its column is above it, and which of four entries before it in its row are set: those 1, `lag`,
`lag - 1` and `lag + 1` columns back. With the width of the image as the lag these are the pixels to the left and
above. A code has a context of the same four: the sum of their signs.

Everything that a probability follows from is a whole number, so that every machine finds the same one.
"""

from collections.abc import Callable
from typing import final

import numpy as np
from numpy.typing import NDArray

from lightning_compress.coding.entropy import (
    COUNT,
    NEIGHBOURS,
    PRIORS,
    WHOLE,
    Source,
    decode_symbols,
    encode_bits,
    encode_runs,
    encode_symbols,
    framed,
)
from lightning_compress.coding.reader import Reader, varint

_LEAST_LAG = 2
# All of these are part of the format.
_TILE_ROWS, _MOST_TILES = 32, 1 << 12
# A step is taken for each column, so that many short ones would take long.
_FEWEST_ROWS, _MOST_COLUMNS = 8, 1 << 14
_ROW_PRIOR, _COLUMN_PRIOR, _CONTEXT_PRIOR, _FIRST_DENSITY = 8, 6, 4, WHOLE // 8
_LOW, _HIGH = 4, WHOLE - WHOLE // 32
_SHIFT = 12
_MOST_RATIO, _MOST_PLAIN = 256 << _SHIFT, 16 * WHOLE
_CONTEXTS = 7
_MOST_WEIGHTS = 1 << 22

_Bits = NDArray[np.bool_]
_Ints = NDArray[np.int64]


def likely_lag(field: NDArray[np.generic]) -> int:
    """The distance of 2 or more, up to half the width, at which the columns of `field` (2-D) resemble each other most.

    Example:
        >>> likely_lag(np.arange(64).reshape(2, 32) % 8 == 0)
        8
    """
    columns = field.shape[1]
    if columns < 2 * _LEAST_LAG + 1:
        return _LEAST_LAG
    centred = field - field.mean()
    power = np.abs(np.fft.rfft(centred, 2 * columns, axis=1)) ** 2
    lags = np.arange(_LEAST_LAG, columns // 2 + 1)
    return int(lags[np.argmax(np.fft.irfft(power.sum(0))[lags] / (columns - lags))])


@final
class _History:
    """What the columns before the present one held, 0 before the first."""

    def __init__(self, rows: int, columns: int, lag: int) -> None:
        self._back = lag + 1
        self._lag = lag
        self.columns = np.zeros((columns + self._back, rows), np.int8)

    def put(self, column: int, entries: NDArray[np.generic]) -> None:
        self.columns[column + self._back] = entries

    def sum_before(self, column: int) -> NDArray[np.int8]:
        """Neighbours 1 and `lag` back count twice, those beside the latter once."""
        at, columns = column + self._back, self.columns
        near = columns[at - 1] + columns[at - self._lag]
        total: NDArray[np.int8] = 2 * near + columns[at - self._lag - 1] + columns[at - self._lag + 1]
        return total


def _walk(rows: int, columns: int, lag: int, bits_of: Callable[[int, slice, _Ints], _Bits]) -> None:
    """Go through a mask by tiles, the entries `slice` of a column; `bits_of` them, given their probabilities."""
    history = _History(rows, columns, lag)
    tile = max(_TILE_ROWS, -(-rows * columns // _MOST_TILES))
    in_row, total = np.zeros(rows, np.int64), 0
    found, expected = np.full(_CONTEXTS, _CONTEXT_PRIOR), np.full(_CONTEXTS, _CONTEXT_PRIOR * WHOLE)
    for column in range(columns):
        density = (2 * total + 1) * WHOLE // (2 * rows * column + 2) if column else _FIRST_DENSITY
        by_row = (in_row * WHOLE + _ROW_PRIOR * density) // (column + _ROW_PRIOR)
        context = history.sum_before(column)
        entries = np.zeros(rows, np.bool_)
        in_column, awaited = _COLUMN_PRIOR, _COLUMN_PRIOR * WHOLE
        for start in range(0, rows, tile):
            part = slice(start, min(rows, start + tile))
            fullness = (in_column << 16 + _SHIFT) // awaited
            ratio = np.minimum((found << 16 + _SHIFT) // expected, _MOST_RATIO)[context[part]]
            plain = np.minimum(by_row[part] * min(fullness, _MOST_RATIO) >> _SHIFT, _MOST_PLAIN)
            ones = np.minimum(np.maximum(plain * ratio >> _SHIFT, _LOW), _HIGH)
            bits = entries[part] = bits_of(column, part, ones)
            in_column += int(np.count_nonzero(bits))
            awaited += int((by_row[part] * ratio >> _SHIFT).sum())
            found += np.bincount(context[part], bits, _CONTEXTS).astype(np.int64)
            expected += np.bincount(context[part], plain, _CONTEXTS).astype(np.int64)
        history.put(column, entries)
        in_row += entries
        total += in_column - _COLUMN_PRIOR


def encode_matrix(mask: _Bits, lag: int) -> bytes | None:
    """Code a mask [rows, columns]; None where it has fewer than 8 rows or more than 16,384 columns.

    Example:
        >>> mask = np.zeros((30, 400), bool)
        >>> mask[:9, ::20] = True
        >>> len(encode_matrix(mask, 20)), len(encode_matrix(mask, 2))
        (58, 138)
    """
    rows, columns = mask.shape
    if not _fits(mask.shape):
        return None
    seen: list[tuple[_Bits, _Ints]] = []

    def bits_of(column: int, part: slice, ones: _Ints) -> _Bits:
        seen.append((mask[part, column], ones))
        return seen[-1][0]

    _walk(rows, columns, lag, bits_of)
    if not seen:
        return b""
    return encode_bits(np.concatenate([bits for bits, _ in seen]), np.concatenate([ones for _, ones in seen]))


def decode_matrix(data: bytes, shape: tuple[int, int], lag: int) -> _Bits:
    """Read back a mask: the inverse of `encode_matrix`.

    Raises:
        ValueError: the data is damaged, or shape or lag are none that `encode_matrix` takes.
    """
    rows, columns = shape
    _check(shape, lag)
    source = Source(data)
    mask = np.zeros(shape, np.bool_)

    def bits_of(column: int, part: slice, ones: _Ints) -> _Bits:
        mask[part, column] = source.bits(ones)
        return mask[part, column]

    _walk(rows, columns, lag, bits_of)
    source.finish()
    return mask


def _fits(shape: tuple[int, ...]) -> bool:
    rows, columns = shape
    return rows >= _FEWEST_ROWS and columns <= _MOST_COLUMNS


def _check(shape: tuple[int, ...], lag: int) -> None:
    if not _fits(shape) or not _LEAST_LAG <= lag < max(shape[1], _LEAST_LAG + 1):
        raise ValueError(f"a lag of {lag} in a matrix of {shape[0]} rows and {shape[1]} columns is declared")


def encode_codes(codes: NDArray[np.integer], mask: _Bits, signs: NDArray[np.integer]) -> bytes:
    """Code the entries of `codes` [rows, columns] that `mask` keeps, as `encode_symbols` or with their neighbours.

    Codes lie in `0..len(signs) - 1`; `signs` says of each, by -1, 0 or 1, which way it points.

    Raises:
        ValueError: a code lies outside of the alphabet.

    Example:
        >>> codes = np.arange(200).reshape(5, 40) // 5 % 2 * 3
        >>> data = encode_codes(codes, codes >= 0, np.array([-1, -1, 1, 1]))
        >>> bool((decode_codes(Reader(data), codes >= 0, np.array([-1, -1, 1, 1])) == codes.reshape(-1)).all())
        True
    """
    coded = [encode_symbols(codes[mask], len(signs))]
    weights = np.count_nonzero(mask) * len(signs)
    if len(signs) > 1 and signs.any() and 0 < weights <= _MOST_WEIGHTS:
        coded += [data for turned in (False, True) if (data := _encode_turned(codes, mask, signs, turned))]
    return min(coded, key=len)


def decode_codes(reader: Reader, mask: _Bits, signs: NDArray[np.integer]) -> NDArray[np.int32]:
    """Read back the codes that `mask` keeps, 1-D in C order: the inverse of `encode_codes`.

    Raises:
        ValueError: the stream is damaged, or not one for this mask and alphabet.
    """
    count = int(np.count_nonzero(mask))
    start = reader.at
    if not count or len(signs) < 2 or (tag := reader.varint()) & 3 != NEIGHBOURS:
        reader.at = start
        return decode_symbols(reader, count, len(signs))
    inner = Reader(reader.take(tag >> 4))
    lag, turned = divmod(inner.varint(), 2)
    kept = mask.T if turned else mask
    _check(kept.shape, lag)
    if count * len(signs) > _MOST_WEIGHTS:
        raise ValueError(f"{count} codes of {len(signs)} kinds are declared to depend on their neighbours")
    source, prior = Source(inner.take(inner.left)), tag >> 2 & 3
    grid = np.zeros(kept.shape, np.int32)

    def codes_of(column: int, rows: NDArray[np.intp], counts: _Ints) -> NDArray[np.integer]:
        codes = grid[rows, column] = source.symbols(counts + PRIORS[prior])
        return codes

    _walk_codes(kept, signs, lag, codes_of)
    source.finish()
    kept_codes: NDArray[np.int32] = (grid.T if turned else grid)[mask]
    return kept_codes


def _walk_codes(
    mask: _Bits,
    signs: NDArray[np.integer],
    lag: int,
    codes_of: Callable[[int, NDArray[np.intp], _Ints], NDArray[np.integer]],
) -> None:
    """Go through the codes by columns; `codes_of` the set `rows` of one, given how every code counts there so far."""
    rows, columns = mask.shape
    history = _History(rows, columns, lag)
    counts = np.zeros((_CONTEXTS, len(signs)), np.int64)
    for column in range(columns):
        there = np.flatnonzero(mask[:, column])
        if not there.size:
            continue
        most = _CONTEXTS // 2
        context = np.minimum(np.maximum(history.sum_before(column)[there], -most), most) + most
        codes = codes_of(column, there, counts[context])
        np.add.at(counts, (context, codes), COUNT)
        entries = np.zeros(rows, np.int8)
        entries[there] = signs[codes]
        history.put(column, entries)


def _encode_turned(codes: NDArray[np.integer], mask: _Bits, signs: NDArray[np.integer], turned: bool) -> bytes | None:
    """The codes with their neighbours, columns for rows where `turned`; None where the shape is none for that."""
    grid, kept = (codes.T, mask.T) if turned else (codes, mask)
    if not _fits(kept.shape):
        return None
    lag = likely_lag(np.where(kept, signs[np.where(kept, grid, 0)], 0))
    seen: list[tuple[NDArray[np.integer], _Ints]] = []

    def codes_of(column: int, rows: NDArray[np.intp], counts: _Ints) -> NDArray[np.integer]:
        seen.append((grid[rows, column], counts))
        return seen[-1][0]

    _walk_codes(kept, signs, lag, codes_of)
    run, counts = np.concatenate([run for run, _ in seen]), np.concatenate([counts for _, counts in seen])
    head = varint(2 * lag + turned)
    coded = [framed(NEIGHBOURS, head + encode_runs(run, counts + prior), i) for i, prior in enumerate(PRIORS)]
    return min(coded, key=len)
