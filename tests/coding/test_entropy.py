import heapq
import math
import time

import numpy as np
import pytest

from lightning_compress.coding import entropy
from lightning_compress.coding.entropy import (
    ANS,
    HUFFMAN,
    RAW,
    WHOLE,
    Source,
    decode_symbols,
    encode_bits,
    encode_runs,
    encode_symbols,
    scheme_of,
)
from lightning_compress.coding.reader import Reader, varint


def entropy_bytes(symbols: np.ndarray) -> float:
    """Shannon's bound for a source that draws with these shares."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / symbols.size)).sum() / 8)


def optimal_bits(symbols: np.ndarray) -> int:
    """Bits of an optimal prefix code: the sum of the inner nodes of Huffman's tree."""
    heap = np.unique(symbols, return_counts=True)[1].tolist()
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def drawn(count: int, alphabet: int, sharpness: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    normal = rng.normal(0, alphabet / 2 / sharpness, count) + alphabet / 2
    return np.clip(np.round(normal), 0, alphabet - 1).astype(np.int64)


@pytest.mark.parametrize("scheme", [RAW, HUFFMAN, ANS])
@pytest.mark.parametrize("alphabet", [2, 3, 15, 16, 32, 255, 1000, 65536])
def test_every_scheme_round_trips(scheme: int, alphabet: int) -> None:
    rng = np.random.default_rng(alphabet)
    for count in (2, 3, 8, 9, 100, 2111):
        symbols = drawn(count, alphabet, 3.0, seed=count)
        symbols[:2] = 0, alphabet - 1
        rng.shuffle(symbols)
        data = encode_symbols(symbols, alphabet, schemes=(scheme,))
        reader = Reader(data + b"rest")
        back = decode_symbols(reader, count, alphabet)
        np.testing.assert_array_equal(back, symbols)
        assert back.dtype == np.int32
        assert (reader.left, scheme_of(data)) == (4, entropy.SCHEMES[scheme])


def test_the_cheapest_in_real_bytes_is_taken() -> None:
    taken = set()
    for seed in range(60):
        alphabet = 2 + seed % 40
        symbols = drawn(5 + 37 * seed, alphabet, 1 + seed % 7, seed)
        data = encode_symbols(symbols, alphabet)
        alone = [encode_symbols(symbols, alphabet, schemes=(scheme,)) for scheme in (RAW, ANS)]
        assert len(data) <= min(map(len, alone))
        taken.add(scheme_of(data))
    assert {"raw", "ans"} <= taken


def test_huffman_wins_where_few_symbols_come_in_runs_of_equal_length() -> None:
    # Adaptive coding pays for each new symbol out of 256; three lengths of one bit or two say the same.
    symbols = np.repeat([7, 120, 244], 60)
    data = encode_symbols(symbols, 256)
    assert scheme_of(data) == "huffman"
    np.testing.assert_array_equal(decode_symbols(Reader(data), 180, 256), symbols)


@pytest.mark.parametrize(("count", "alphabet"), [(21_000, 32), (21_000, 15), (3_000, 32), (200_000, 4)])
def test_adaptive_coding_is_near_the_entropy(count: int, alphabet: int) -> None:
    symbols = drawn(count, alphabet, 3.0)
    bound = entropy_bytes(symbols)
    learning = (alphabet - 1) / 2 * math.log2(count) / 8
    size = len(encode_symbols(symbols, alphabet, schemes=(ANS,)))
    assert bound - 1 < size < bound + 1.5 * learning + 8


@pytest.mark.parametrize("alphabet", [2, 15, 32, 200])
def test_a_huffman_code_is_optimal(alphabet: int) -> None:
    symbols = drawn(5000, alphabet, 2.5)
    data = encode_symbols(symbols, alphabet, schemes=(HUFFMAN,))
    reader = Reader(data)
    size = reader.varint() >> 4
    assert size == -(-optimal_bits(symbols) // 8)
    assert len(data) - size <= 4 + alphabet * 5 / 8 + 1


def test_symbols_that_are_all_the_same_take_next_to_nothing() -> None:
    for symbol in (0, 3):
        data = encode_symbols(np.full(100_000, symbol), 16)
        assert len(data) < 12
        assert (decode_symbols(Reader(data), 100_000, 16) == symbol).all()


def test_nothing_takes_no_bytes() -> None:
    assert encode_symbols(np.zeros(0, np.int64), 5) == encode_symbols(np.zeros(9, np.int64), 1) == b""
    assert decode_symbols(Reader(b""), 9, 1).tolist() == [0] * 9


#: What files hold: a change here needs a new version of the packed format.
KNOWN = {
    RAW: "00945458945458945458945458945458945458",
    HUFFMAN: "d1010022087168e2d0c4a189431387260e0d",
    ANS: "82021d8ea0a3d7b3c6411f8f4c5d612a4a0f",
}


def test_known_bytes_stay_as_they_are() -> None:
    symbols = np.array([0, 1, 1, 2, 0, 1, 1, 1, 0, 2, 1, 1] * 6)
    files = {scheme: encode_symbols(symbols, 3, schemes=(scheme,)).hex() for scheme in (RAW, HUFFMAN, ANS)}
    assert files == KNOWN


def test_a_million_symbols_are_fast() -> None:
    symbols = drawn(1_000_000, 16, 2.0)
    start = time.perf_counter()
    data = encode_symbols(symbols, 16)
    back = decode_symbols(Reader(data), symbols.size, 16)
    assert time.perf_counter() - start < 5
    np.testing.assert_array_equal(back, symbols)


@pytest.mark.parametrize("symbols", [[-1, 0], [0, 4]])
def test_symbols_outside_of_the_alphabet_are_refused(symbols: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected symbols in 0\.\.3"):
        encode_symbols(np.array(symbols), 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "1 bytes declared where 0"),
        (b"\x00\xff", "2 bytes declared where 1"),
        (b"\x00\xff\xff", "symbol 3 is not in an alphabet of 3"),
        (varint(9 << 4 | ANS) + b"\1", "9 bytes declared where 1"),
        (varint(1 << 50 | ANS) + b"\1", "bytes declared where 1"),
        (varint(2 << 4 | ANS) + b"\1\0", "ends in a zero byte"),
        (varint(12 << 4 | ANS) + b"\xff" * 12, "left over behind the last symbol"),
        (varint(1 << 4 | HUFFMAN) + b"\0\0\0\0", "that no Huffman code has"),
        (varint(1 << 4 | 1 << 2 | HUFFMAN), "which no scheme does"),
        (varint(3), "which no scheme does"),
        (varint(4), "which no scheme does"),
    ],
)
def test_damaged_streams_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_symbols(Reader(data), 8, 3)


@pytest.mark.parametrize("lengths", [[0, 0, 0], [0, 1, 0], [1, 1, 1], [2, 2, 2], [24, 24, 23], [1, 2, 3]])
def test_code_lengths_of_no_tree_are_refused(lengths: list[int]) -> None:
    table = encode_symbols(np.array(lengths), 25, schemes=(RAW,))
    with pytest.raises(ValueError, match="that no Huffman code has"):
        decode_symbols(Reader(varint(1 << 4 | HUFFMAN) + table + b"\0"), 8, 3)


def test_random_bytes_decode_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(3000):
        data = rng.bytes(int(rng.integers(0, 40)))
        try:
            back = decode_symbols(Reader(data), int(rng.integers(1, 60)), 6)
        except ValueError:
            outcomes.add("refused")
        else:
            assert 0 <= back.min() <= back.max() < 6
            outcomes.add("decoded")
    assert outcomes == {"refused", "decoded"}


def test_bits_under_their_own_probabilities() -> None:
    rng = np.random.default_rng(0)
    ones = rng.integers(1, WHOLE, 5000)
    bits = rng.integers(0, WHOLE, 5000) < ones
    data = encode_bits(bits, ones)
    share = ones / WHOLE
    assert len(data) <= -np.log2(np.where(bits, share, 1 - share)).sum() / 8 + 5
    source = Source(data)
    np.testing.assert_array_equal(np.concatenate([source.bits(ones[:7]), source.bits(ones[7:])]), bits)
    source.finish()


def test_symbols_under_their_own_weights() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 50, (2000, 7))
    symbols = np.array([rng.choice(7, p=row / row.sum()) for row in weights])
    data = encode_runs(symbols, weights)
    bound = -np.log2(weights[np.arange(2000), symbols] / weights.sum(1)).sum() / 8
    assert bound - 1 < len(data) < bound + 5
    source = Source(data)
    np.testing.assert_array_equal(np.concatenate([source.symbols(weights[:9]), source.symbols(weights[9:])]), symbols)
    source.finish()


def test_what_is_left_over_is_noticed() -> None:
    with pytest.raises(ValueError, match="left over behind the last symbol"):
        Source(b"\xff" * 9).finish()
