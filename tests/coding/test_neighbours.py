import zlib

import numpy as np
import pytest

from lightning_compress.coding.entropy import decode_symbols, encode_symbols, scheme_of
from lightning_compress.coding.neighbours import (
    decode_codes,
    decode_matrix,
    encode_codes,
    encode_matrix,
    likely_lag,
)
from lightning_compress.coding.reader import Reader, varint

SIGNS = np.array([-1, -1, 0, 1, 1])


def entropy_bytes(mask: np.ndarray) -> float:
    density = mask.mean()
    return float(-(density * np.log2(density) + (1 - density) * np.log2(1 - density)) * mask.size / 8)


def picture_mask(rows: int = 60, side: int = 20, seed: int = 0) -> np.ndarray:
    """Each row keeps a blob of the pixels of an image."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    centres = rng.normal(side / 2, side / 6, (rows, 2))
    far = ((across - centres[:, :1, None]) ** 2 + (down - centres[:, 1:, None]) ** 2) ** 0.5
    return np.asarray(rng.random((rows, side, side)) < 0.9 * (far < 3.5)).reshape(rows, -1)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (7, 33), (130, 70), (0, 4), (4, 0)])
def test_masks_round_trip(shape: tuple[int, int], density: float) -> None:
    mask = np.asarray(np.random.default_rng(0).random(shape) < density)
    for lag in {2, likely_lag(mask), max(2, shape[1] - 1)}:
        data = encode_matrix(mask, lag)
        assert (data is None) == (shape[0] < 8)
        if data is not None:
            np.testing.assert_array_equal(decode_matrix(data, shape, lag), mask)


def test_the_lag_of_an_image_is_its_width() -> None:
    assert likely_lag(picture_mask(side=20)) == 20
    assert likely_lag(picture_mask(side=28)) == 28


def test_structure_is_worth_bytes_and_its_absence_costs_few() -> None:
    random = np.random.default_rng(0).random((300, 784)) < 0.08
    blobs = picture_mask(100, 28)
    for mask, share in [(random, 1.02), (blobs, 0.6)]:
        data = encode_matrix(mask, likely_lag(mask))
        assert data is not None
        assert len(data) < share * entropy_bytes(mask)
    without = encode_matrix(blobs, 13)
    assert without is not None
    assert len(without) > 1.1 * len(encode_matrix(blobs, 28) or b"")


def test_rows_and_columns_of_their_own_density() -> None:
    rng = np.random.default_rng(0)
    share = np.outer(rng.uniform(0, 1, 200), rng.uniform(0, 1, 300)) ** 2
    mask = rng.random((200, 300)) < share
    data = encode_matrix(mask, likely_lag(mask))
    ideal = -np.log2(np.where(mask, share, 1 - share)).sum() / 8
    assert data is not None
    assert ideal < len(data) < 1.12 * ideal < 0.8 * entropy_bytes(mask)


@pytest.mark.parametrize("shape", [(8, 16385), (7, 5)])
def test_many_or_short_columns_are_left_to_others(shape: tuple[int, int]) -> None:
    assert encode_matrix(np.zeros(shape, bool), 2) is None
    with pytest.raises(ValueError, match=f"a lag of 2 in a matrix of {shape[0]} rows and {shape[1]} columns"):
        decode_matrix(b"", shape, 2)


@pytest.mark.parametrize("lag", [0, 1, 30, 2**40])
def test_hostile_lags_are_refused(lag: int) -> None:
    with pytest.raises(ValueError, match=f"a lag of {lag} in a matrix of 9 rows and 30 columns"):
        decode_matrix(b"", (9, 30), lag)


def codes_of(mask: np.ndarray, alphabet: int, seed: int = 0) -> np.ndarray:
    """Codes whose sign is that of a patch of the image that they belong to."""
    rng = np.random.default_rng(seed)
    patch = np.repeat(np.repeat(rng.integers(0, 2, (len(mask), 4, 4)), 5, axis=1), 5, axis=2).reshape(mask.shape)
    return np.where(
        patch, rng.integers(alphabet // 2, alphabet, mask.shape), rng.integers(0, alphabet // 2, mask.shape)
    )


@pytest.mark.parametrize("alphabet", [1, 2, 5, 32])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_codes_round_trip(alphabet: int, density: float) -> None:
    rng = np.random.default_rng(alphabet)
    for shape in [(1, 1), (3, 40), (40, 3), (60, 100), (0, 5)]:
        mask = np.asarray(rng.random(shape) < density)
        signs = np.sign(np.arange(alphabet) - alphabet // 2)
        codes = rng.integers(0, alphabet, shape)
        reader = Reader(encode_codes(codes, mask, signs) + b"x")
        np.testing.assert_array_equal(decode_codes(reader, mask, signs), codes[mask])
        assert reader.left == 1


def test_neighbours_of_a_sign_are_worth_bytes_in_either_direction() -> None:
    mask = picture_mask()
    codes = codes_of(mask, 32)
    signs = np.where(np.arange(32) < 16, -1, 1)
    plain = encode_symbols(codes[mask], 32)
    for grid, kept in [(codes, mask), (codes.T, mask.T)]:
        data = encode_codes(grid, kept, signs)
        assert scheme_of(data) == "neighbours"
        assert len(data) < 0.95 * len(plain)
        np.testing.assert_array_equal(decode_codes(Reader(data), kept, signs), grid[kept])


def test_codes_without_neighbours_are_coded_as_symbols() -> None:
    mask = np.random.default_rng(0).random((50, 60)) < 0.2
    codes = np.random.default_rng(1).integers(0, 5, mask.shape)
    data = encode_codes(codes, mask, SIGNS)
    assert data == encode_symbols(codes[mask], 5)
    np.testing.assert_array_equal(decode_symbols(Reader(data), int(mask.sum()), 5), codes[mask])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (varint(2 << 4 | 3) + varint(2 * 900), "a lag of 900 in a matrix of 9 rows and 30"),
        (varint(1 << 4 | 3) + varint(2), "a lag of 1 in a matrix of 9 rows and 30"),
        (varint(9 << 4 | 3) + varint(4), "9 bytes declared where 1"),
        (varint(2 << 4 | 3) + varint(4) + b"\0", "ends in a zero byte"),
        (varint(99 << 4 | 3) + varint(4) + b"\xff" * 98, "left over"),
        (b"\x80", "0 are left"),
    ],
)
def test_damaged_codes_are_refused(data: bytes, message: str) -> None:
    mask = np.zeros((9, 30), bool)
    mask[:, ::7] = True
    with pytest.raises(ValueError, match=message):
        decode_codes(Reader(data), mask, SIGNS)


def test_contexts_that_would_take_much_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="are declared to depend on their neighbours"):
        decode_codes(Reader(varint(1 << 4 | 3) + varint(4)), np.ones((1000, 100), bool), np.zeros(256, int))


#: What files hold: a change here needs a new version of the packed format.
KNOWN_MASK = "9c3ab5e273522af8d328201cb907ffaaed"
KNOWN_CODES = (110, 541905600)


def test_known_bytes_stay_as_they_are() -> None:
    assert (encode_matrix(np.arange(144).reshape(9, 16) % 5 % 3 == 0, 5) or b"").hex() == KNOWN_MASK
    codes = np.tile(np.repeat([0, 1, 2, 3], 8), (24, 1))
    data = encode_codes(codes, codes >= 0, np.array([-1, -1, 1, 1]))
    assert scheme_of(data) == "neighbours"
    assert (len(data), zlib.crc32(data)) == KNOWN_CODES
