"""Entropy coding: whole numbers in the fewest bytes, exactly.

A stream of symbols from a known alphabet is written by whichever of these takes the fewest bytes, tables and sizes
counted:

- n bits each;
- a Huffman code (1952), canonical in its lengths, which are written before it;
- asymmetric numeral systems (Duda, arXiv:1311.2540) under a model that needs no table: the symbols seen so far, on
  top of one of four flat priors (adaptive coding, as Cleary and Witten, 1984).

Coder and models are those of `constriction` (Bamler, arXiv:2201.01741); models are made from whole numbers, so that
every machine makes the same ones.
"""

from collections.abc import Iterator
from typing import Any, final

import constriction
import numpy as np
from numpy.typing import NDArray

from lightning_compress.coding.bits import MAX_BITS, pack, packed_size, unpack
from lightning_compress.coding.reader import Reader, varint

RAW, HUFFMAN, ANS, NEIGHBOURS = range(4)
SCHEMES = ("raw", "huffman", "ans", "neighbours")
#: Probability 1 of the bits that `encode_bits` codes.
WHOLE = 1 << 16
# A count weighs 32, the prior of a symbol one of these. All of this is part of the format.
COUNT, PRIORS = 32, (1, 4, 16, 64)
_FIRST_BLOCK, _BLOCK_SHARE = 8, 16
_LONGEST_CODE, _MOST_CODES = 24, 1 << 12

_Ints = NDArray[np.integer]


def encode_symbols(symbols: _Ints, alphabet: int, *, schemes: tuple[int, ...] = (RAW, HUFFMAN, ANS)) -> bytes:
    """Code symbols in `0..alphabet - 1`, of any shape, by the cheapest of `schemes`; it says which one it took.

    No symbols, or an alphabet of one, take no bytes.

    Raises:
        ValueError: a symbol lies outside of the alphabet, or the alphabet is not of 1 to 2**24.

    Example:
        >>> data = encode_symbols(np.array([0, 1, 0, 0, 3] * 40), 4)
        >>> len(data), decode_symbols(Reader(data), 200, 4)[:5]
        (40, array([0, 1, 0, 0, 3], dtype=int32))
    """
    bits = _width(alphabet)
    flat: _Ints = symbols.reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < alphabet:
        raise ValueError(f"expected symbols in 0..{alphabet - 1}, got {flat.min()}..{flat.max()}")
    if not bits or not flat.size:
        return b""
    narrow = flat.astype(np.int32)
    coded = []
    if ANS in schemes:
        coded += [framed(ANS, _encode_ans(narrow, alphabet, prior), prior) for prior in range(len(PRIORS))]
    if HUFFMAN in schemes:
        coded += _encode_huffman(narrow, alphabet, min(map(len, coded), default=None))
    if RAW in schemes:
        coded.append(varint(RAW) + pack(flat, bits))
    return min(coded, key=len)


def scheme_of(data: bytes) -> str:
    """How a stream that is not empty was written: "raw", "huffman", "ans", or "neighbours" (neighbours.py)."""
    return SCHEMES[Reader(data).varint() & 3]


def decode_symbols(reader: Reader, count: int, alphabet: int) -> NDArray[np.int32]:
    """Read back `count` symbols, 1-D: the inverse of `encode_symbols`.

    A stream may be far shorter than its symbols, so `count` has to be one that the caller can afford.

    Raises:
        ValueError: the stream is damaged, or not one of that many symbols of that alphabet.
    """
    bits = _width(alphabet)
    if not bits or not count:
        return np.zeros(count, np.int32)
    tag = reader.varint()
    scheme, prior, size = tag & 3, tag >> 2 & 3, tag >> 4
    if scheme == ANS:
        return _decode_ans(reader.take(size), count, alphabet, prior)
    if scheme == HUFFMAN and not prior:
        return _decode_huffman(reader, count, alphabet, size)
    if tag != RAW:
        raise ValueError(f"a stream of symbols begins with {tag}, which no scheme does")
    symbols = unpack(reader.take(packed_size(count, bits)), count, bits).astype(np.int32)
    return _inside(symbols, alphabet)


def _width(alphabet: int) -> int:
    if not 1 <= alphabet <= 1 << MAX_BITS:
        raise ValueError(f"expected an alphabet of 1 to {1 << MAX_BITS} symbols, got {alphabet}")
    return (alphabet - 1).bit_length()


def _inside(symbols: NDArray[np.int32], alphabet: int) -> NDArray[np.int32]:
    if symbols.max() >= alphabet:
        raise ValueError(f"symbol {symbols.max()} is not in an alphabet of {alphabet}")
    return symbols


def framed(scheme: int, payload: bytes, prior: int = 0) -> bytes:
    """A stream of symbols as it is written: its length, prior and scheme in one number, and what it holds."""
    return varint(len(payload) << 4 | prior << 2 | scheme) + payload


def _to_bytes(words: NDArray[np.uint32]) -> bytes:
    """Words of the coder, the lowest byte first, without the zeros at the end."""
    return words.astype("<u4").tobytes().rstrip(b"\0")


def _to_words(data: bytes) -> NDArray[np.uint32]:
    if data.endswith(b"\0"):
        raise ValueError("coded data ends in a zero byte, which is never written")
    return np.frombuffer(data + b"\0" * (-len(data) % 4), "<u4").astype(np.uint32)


def _blocks(count: int) -> Iterator[slice]:
    """Stretches within which the model stays as it is: short ones first, then each a 16th of what came before."""
    start = 0
    while start < count:
        stop = min(count, start + max(_FIRST_BLOCK, start // _BLOCK_SHARE))
        yield slice(start, stop)
        start = stop


def _model(counts: NDArray[np.int64], prior: int) -> Any:
    weights = (counts * COUNT + PRIORS[prior]).astype(np.float64)
    return constriction.stream.model.Categorical(weights, perfect=False)


def _encode_ans(symbols: NDArray[np.int32], alphabet: int, prior: int) -> bytes:
    coder = constriction.stream.stack.AnsCoder()
    counts = np.bincount(symbols, minlength=alphabet)
    # The coder is a stack: what is read first is written last.
    for block in reversed(list(_blocks(symbols.size))):
        counts -= np.bincount(symbols[block], minlength=alphabet)
        coder.encode_reverse(symbols[block], _model(counts, prior))
    return _to_bytes(coder.get_compressed())


def _decode_ans(data: bytes, count: int, alphabet: int, prior: int) -> NDArray[np.int32]:
    coder = constriction.stream.stack.AnsCoder(_to_words(data))
    counts = np.zeros(alphabet, np.int64)
    symbols = np.empty(count, np.int32)
    for block in _blocks(count):
        symbols[block] = coder.decode(_model(counts, prior), block.stop - block.start)
        counts += np.bincount(symbols[block], minlength=alphabet)
    if not coder.is_empty():
        raise ValueError("coded data is left over behind the last symbol")
    return symbols


def _code_lengths(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lengths of the Huffman codes of symbols with these counts, all above zero."""
    tree = constriction.symbol.huffman.EncoderHuffmanTree(counts.astype(np.float64))
    lengths = []
    for symbol in range(len(counts)):
        coder = constriction.symbol.QueueEncoder()
        coder.encode_symbol(symbol, tree)
        lengths.append(coder.get_compressed()[1])
    return np.array(lengths)


def _dyadic(lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities whose Huffman code has just these lengths."""
    return np.ldexp(1.0, -lengths)


def _encode_huffman(symbols: NDArray[np.int32], alphabet: int, to_beat: int | None) -> list[bytes]:
    """The stream, where there is a Huffman code for it and its length is below `to_beat`."""
    present, index, counts = np.unique(symbols, return_inverse=True, return_counts=True)
    if not 2 <= len(present) <= _MOST_CODES:
        return []
    lengths = _code_lengths(counts)
    if lengths.max() > _LONGEST_CODE:
        return []
    table = np.zeros(alphabet, np.int64)
    table[present] = lengths
    size = packed_size(int((lengths * counts).sum()), 1)
    frame = varint(size << 4 | HUFFMAN) + encode_symbols(table, _LONGEST_CODE + 1, schemes=(RAW, ANS))
    if to_beat is not None and len(frame) + size >= to_beat:
        return []
    tree = constriction.symbol.huffman.EncoderHuffmanTree(_dyadic(lengths))
    coder = constriction.symbol.QueueEncoder()
    for place in index.tolist():
        coder.encode_symbol(place, tree)
    return [frame + coder.get_compressed()[0].astype("<u4").tobytes()[:size]]


def _decode_huffman(reader: Reader, count: int, alphabet: int, size: int) -> NDArray[np.int32]:
    table = decode_symbols(reader, alphabet, _LONGEST_CODE + 1).astype(np.int64)
    present = np.flatnonzero(table)
    # Where the codes do not fill the space of words exactly, there is no such tree.
    if (
        len(present) < 2
        or len(present) > _MOST_CODES
        or (1 << (_LONGEST_CODE - table[present])).sum() != 1 << _LONGEST_CODE
    ):
        raise ValueError("code lengths are declared that no Huffman code has")
    data = reader.take(size)
    if 8 * size < count * table[present].min():
        raise ValueError(f"{size} bytes declared for {count} Huffman codes of {table[present].min()} bits or more")
    tree = constriction.symbol.huffman.DecoderHuffmanTree(_dyadic(table[present]))
    coder = constriction.symbol.QueueDecoder(np.frombuffer(data + bytes(-size % 4), "<u4").astype(np.uint32))
    places = [coder.decode_symbol(tree) for _ in range(count)]
    return present[places].astype(np.int32)


def encode_bits(bits: NDArray[np.bool_], ones: NDArray[np.int64]) -> bytes:
    """Code bits (1-D), each under its own probability of being set, `ones / 65536` with 0 < ones < 65536.

    Example:
        >>> bits = np.arange(800) % 100 == 0
        >>> len(encode_bits(bits, np.full(800, 655)))
        11
    """
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(bits.astype(np.int32), constriction.stream.model.Bernoulli(perfect=False), ones / WHOLE)
    return _to_bytes(coder.get_compressed())


def encode_runs(symbols: _Ints, weights: NDArray[np.int64]) -> bytes:
    """Code symbols (1-D), each under its own weights [symbols, alphabet], all above zero.

    Example:
        >>> len(encode_runs(np.zeros(800, int), np.tile([99, 1], (800, 1))))
        0
    """
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(perfect=False)
    coder.encode_reverse(symbols.astype(np.int32), model, weights.astype(np.float64))
    return _to_bytes(coder.get_compressed())


@final
class Source:
    """Reads back what `encode_bits` or `encode_runs` wrote, in pieces: a model may follow from what came before.

    Raises:
        ValueError: `data` is not what they write.

    Example:
        >>> source = Source(encode_bits(np.array([True, False]), np.array([100, 200])))
        >>> source.bits(np.array([100])), source.bits(np.array([200]))
        (array([ True]), array([False]))
        >>> source.finish()
    """

    def __init__(self, data: bytes) -> None:
        self._coder = constriction.stream.stack.AnsCoder(_to_words(data))

    def bits(self, ones: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The next bits, one for each of the probabilities under which they were coded."""
        model = constriction.stream.model.Bernoulli(perfect=False)
        return np.asarray(self._coder.decode(model, ones / WHOLE)).astype(np.bool_)

    def symbols(self, weights: NDArray[np.int64]) -> NDArray[np.int32]:
        """The next symbols, one for each row of the weights under which they were coded."""
        model = constriction.stream.model.Categorical(perfect=False)
        return np.asarray(self._coder.decode(model, weights.astype(np.float64)))

    def finish(self) -> None:
        """Nothing more is taken.

        Raises:
            ValueError: there is more.
        """
        if not self._coder.is_empty():
            raise ValueError("coded data is left over behind the last symbol")
