import math

import numpy as np
import pytest

from lightning_compress.coding.bits import pack
from lightning_compress.coding.reader import Reader, varint
from lightning_compress.coding.sparse import BITMAP, NEIGHBOURS, ONES, RELATIVE, decode_mask, encode_mask, form_of

ROWS = 4


def relative_bits_needed(mask: np.ndarray, bits: int) -> int:
    """Bits of the gap coding, counted one entry at a time."""
    num_codes = zeros = 0
    for entry in mask.reshape(-1):
        if entry:
            num_codes += 1
            zeros = 0
        else:
            zeros += 1
            if zeros == 2**bits - 1:
                num_codes += 1
                zeros = 0
    trailing = mask.size - (int(np.flatnonzero(mask)[-1]) + 1 if mask.any() else 0)
    return int((num_codes - trailing // (2**bits - 1)) * bits)


def tag(form: int, extra: int = 0, *, rows: bool = False) -> bytes:
    return bytes([form | ROWS * rows | extra << 3])


def entropy_bytes(mask: np.ndarray) -> float:
    density = mask.mean()
    return float(-(density * math.log2(density) + (1 - density) * math.log2(1 - density)) * mask.size / 8)


@pytest.mark.parametrize("density", [0.0, 0.003, 0.02, 0.1, 0.3, 0.6, 0.97, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (40, 25), (8, 3, 5, 5), (4, 0, 3)])
def test_round_trip_and_no_longer_than_bitmap_and_plain_gaps(density: float, shape: tuple[int, ...]) -> None:
    mask = np.asarray(np.random.default_rng(math.prod(shape)).random(shape) < density)
    data = encode_mask(mask)
    reader = Reader(data + b"x")
    back = decode_mask(reader, shape)
    assert back.dtype == np.bool_
    assert (back.shape, reader.left) == (shape, 1)
    np.testing.assert_array_equal(back, mask)
    plain = [-(-mask.size // 8)] + [3 + -(-relative_bits_needed(mask, bits) // 8) for bits in range(2, 9)]
    assert len(data) <= (1 if mask.all() else 1 + min(plain))


def test_hand_worked_relative_codes() -> None:
    # Set entries at 0, 2 and 9: 0 zeros, 1 zero, 6 zeros = two fillers of 3 and 0 zeros; 2 bits per code, not coded.
    mask = np.zeros(40, np.bool_)
    mask[[0, 2, 9]] = True
    data = tag(RELATIVE, 1) + varint(5) + b"\0" + pack(np.array([0, 1, 3, 3, 0]), 2)
    np.testing.assert_array_equal(decode_mask(Reader(data), (40,)), mask)
    assert encode_mask(mask) == data


def test_gap_that_needs_fillers_at_every_width() -> None:
    for position in (2, 3, 6, 7, 254, 255, 256, 510, 511, 5000):
        mask = np.zeros(100_000, np.bool_)
        mask[position] = True
        data = encode_mask(mask)
        assert len(data) < 20
        np.testing.assert_array_equal(decode_mask(Reader(data), mask.shape), mask)


@pytest.mark.parametrize(
    ("mask", "form", "size"),
    [
        (np.ones((64, 64), np.bool_), "ones", 1),
        (np.arange(4096).reshape(64, 64) // 64 % 4 == 0, "rows+ones", 9),
        (np.random.default_rng(0).random((64, 8)) < 0.5, "bitmap", 65),
    ],
)
def test_forms(mask: np.ndarray, form: str, size: int) -> None:
    data = encode_mask(mask)
    assert (form_of(data), len(data)) == (form, size)


def test_an_empty_mask_takes_next_to_nothing() -> None:
    assert len(encode_mask(np.zeros((64, 64), np.bool_))) < 10


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.8])
def test_rate_is_near_the_entropy_of_a_random_mask(density: float) -> None:
    mask = np.random.default_rng(0).random((400, 500)) < density
    assert entropy_bytes(mask) - 40 < len(encode_mask(mask)) < 1.03 * entropy_bytes(mask)


def test_rows_removed_and_the_rest_sparse() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((256, 144)) < 0.05
    mask[rng.permutation(256)[:192]] = False
    data = encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(Reader(data), mask.shape), mask)
    assert len(data) < 256 / 8 + 1.05 * entropy_bytes(mask[mask.any(axis=1)])


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (1, 0, 2, 3)])
def test_structure_along_either_side_is_found(axes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((64, 32, 3, 3)) < rng.uniform(0, 0.4, (64, 1, 1, 1)) ** 2 * 4).transpose(axes)
    data = encode_mask(mask)
    assert form_of(data) == "neighbours"
    assert len(data) < 0.93 * entropy_bytes(mask)
    np.testing.assert_array_equal(decode_mask(Reader(data), mask.shape), mask)


def test_every_form_is_taken_by_some_mask() -> None:
    rng = np.random.default_rng(0)
    found = set()
    for density in (0.002, 0.05, 0.5, 1.0):
        for removed in (0, 1):
            for shape in ((30, 20), (200, 30)):
                mask = rng.random(shape) < density
                mask[: removed * 15] = False
                found.add(form_of(encode_mask(mask)).removeprefix("rows+"))
    assert found == {"ones", "bitmap", "relative", "neighbours"}


def test_encode_refuses_what_is_not_boolean() -> None:
    with pytest.raises(ValueError, match="expected a boolean mask, got dtype int64: write `weight != 0`"):
        encode_mask(np.array([0, 1]))


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        (b"", (4,), "1 bytes declared where 0"),
        (tag(ONES, 1), (4,), "begins with form 0 and 1"),
        (tag(BITMAP, 1) + b"\0", (4,), "begins with form 1 and 1"),
        (tag(RELATIVE, 0) + b"\0", (4,), "begins with form 2 and 0"),
        (tag(RELATIVE, 8) + b"\0", (4,), "begins with form 2 and 8"),
        (tag(BITMAP) + b"\0", (9,), "2 bytes declared where 1"),
        (tag(RELATIVE, 1) + varint(2), (9,), "0 are left"),
        (tag(RELATIVE, 1) + varint(4), (3,), "4 gap codes cannot fit in a mask of 3 entries"),
        (tag(RELATIVE, 7) + varint(2**60), (3,), "cannot fit"),
        (tag(RELATIVE, 7) + varint(1) + b"\0\x04", (4,), "reach entry 4, beyond the end of a mask of 4"),
        (tag(RELATIVE, 1) + varint(2) + b"\0" + pack(np.array([3, 3]), 2), (5,), "beyond the end"),
        (tag(BITMAP, rows=True), (9, 2), "2 bytes declared where 0"),
        (tag(BITMAP, rows=True) + b"\x01\x00", (9, 9), "2 bytes declared where 0"),
        (tag(ONES, rows=True), (), "which no form does"),
        (tag(NEIGHBOURS, rows=True), (4, 4), "which no form does"),
        (tag(NEIGHBOURS, 4), (4, 4), "of kind 4, which there is not"),
        (tag(NEIGHBOURS) + varint(9) + varint(0), (8, 9), "a lag of 9 in a matrix of 8 rows and 9"),
        (tag(NEIGHBOURS, 1) + varint(8) + varint(0), (8, 9), "a lag of 8 in a matrix of 9 rows and 8"),
        (tag(NEIGHBOURS) + varint(2) + varint(2**50), (4, 4), "bytes declared where 0"),
        (tag(NEIGHBOURS) + varint(2) + varint(1) + b"\0", (8, 4), "ends in a zero byte"),
        (tag(NEIGHBOURS) + varint(2) + varint(60) + b"\1" * 60, (8, 4), "left over"),
        (tag(ONES), (-1, 4), r"lengths >= 0, got \(-1, 4\)"),
    ],
)
def test_hostile_input_is_refused(data: bytes, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_mask(Reader(data), shape)


def test_random_bytes_decode_to_the_declared_shape_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(2000):
        try:
            outcomes.add(decode_mask(Reader(rng.bytes(int(rng.integers(0, 9)))), (6, 5)).shape)
        except ValueError:
            outcomes.add(())
    assert outcomes == {(6, 5), ()}
