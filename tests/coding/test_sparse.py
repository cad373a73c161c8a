import math

import numpy as np
import pytest

from lightning_compress.coding.bits import pack
from lightning_compress.coding.sparse import decode_mask, encode_mask


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


@pytest.mark.parametrize("density", [0.0, 0.003, 0.02, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (17,), (40, 25), (8, 3, 5, 5), (4, 0, 3)])
def test_round_trip_and_smallest(density: float, shape: tuple[int, ...]) -> None:
    mask = np.asarray(np.random.default_rng(math.prod(shape)).random(shape) < density)
    scheme, data = encode_mask(mask)
    back = decode_mask(scheme, data, shape)
    assert back.dtype == np.bool_
    assert back.shape == shape
    np.testing.assert_array_equal(back, mask)
    sizes = [-(-mask.size // 8)] + [-(-relative_bits_needed(mask, bits) // 8) for bits in range(2, 9)]
    assert len(data) <= (0 if mask.all() else min(sizes))
    if not scheme.startswith("rows+") and not mask.all():
        assert len(data) == min(sizes)


def test_hand_worked_relative_codes() -> None:
    # Set entries at 0, 2 and 9: 0 zeros, 1 zero, 6 zeros = two fillers of 3 and 0 zeros; 2 bits per code.
    mask = np.zeros(40, np.bool_)
    mask[[0, 2, 9]] = True
    data = pack(np.array([0, 1, 3, 3, 0]), 2)
    np.testing.assert_array_equal(decode_mask("relative:2:5", data, (40,)), mask)
    # With 3 bits the three gaps fit without a filler: 9 bits, so 2 bytes against 10 bits, 2 bytes: the tie goes to
    # the narrower code.
    assert encode_mask(mask) == ("relative:2:5", data)


def test_gap_that_needs_fillers_at_every_width() -> None:
    for position in (2, 3, 6, 7, 254, 255, 256, 510, 511, 5000):
        mask = np.zeros(100_000, np.bool_)
        mask[position] = True
        scheme, data = encode_mask(mask)
        np.testing.assert_array_equal(decode_mask(scheme, data, mask.shape), mask)


@pytest.mark.parametrize(
    ("mask", "scheme", "size"),
    [
        (np.ones((64, 64), np.bool_), "ones", 0),
        (np.zeros((64, 64), np.bool_), "relative:2:0", 0),
        (np.arange(4096).reshape(64, 64) % 2 == 0, "bitmap", 512),
        (np.arange(4096).reshape(64, 64) // 64 % 4 == 0, "rows+ones", 8),
        (np.arange(4096).reshape(64, 64) % 3 == 0, "relative:2:1366", 342),
    ],
)
def test_schemes(mask: np.ndarray, scheme: str, size: int) -> None:
    assert encode_mask(mask)[0] == scheme
    assert len(encode_mask(mask)[1]) == size


def test_rows_removed_and_the_rest_sparse() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((256, 144)) < 0.05
    mask[rng.permutation(256)[:192]] = False
    scheme, data = encode_mask(mask)
    assert scheme.startswith("rows+relative:")
    np.testing.assert_array_equal(decode_mask(scheme, data, mask.shape), mask)
    kept = mask[mask.any(axis=1)]
    assert len(data) == 256 // 8 + min(-(-relative_bits_needed(kept, bits) // 8) for bits in range(2, 9))


def test_rate_is_near_the_entropy_of_a_random_mask() -> None:
    mask = np.random.default_rng(0).random(200_000) < 0.05
    entropy = -(0.05 * math.log2(0.05) + 0.95 * math.log2(0.95)) * mask.size / 8
    assert entropy < len(encode_mask(mask)[1]) < 1.15 * entropy


def test_encode_refuses_what_is_not_boolean() -> None:
    with pytest.raises(ValueError, match="expected a boolean mask, got dtype int64: write `weight != 0`"):
        encode_mask(np.array([0, 1]))


@pytest.mark.parametrize(
    ("scheme", "data", "shape", "message"),
    [
        ("huffman", b"", (4,), "unknown mask scheme 'huffman'"),
        ("relative:9:1", b"\0\0", (4,), "unknown mask scheme"),
        ("relative:2:-1", b"", (4,), "unknown mask scheme"),
        ("rows+rows+ones", b"", (4,), "unknown mask scheme"),
        ("ones\n", b"", (4,), "unknown mask scheme"),
        ("ones", b"\0", (4,), "expected 0 bytes for a mask of ones, got 1"),
        ("bitmap", b"\0", (9,), "expected 2 bytes for 9 codes of 1 bits, got 1"),
        ("bitmap", b"\0" * 3, (9,), "got 3"),
        ("relative:2:2", b"", (9,), "expected 1 bytes for 2 codes of 2 bits, got 0"),
        ("relative:2:4", b"\0", (3,), "4 gap codes cannot fit in a mask of 3 entries"),
        ("relative:8:999999999999999999", b"\0", (3,), "cannot fit"),
        ("relative:8:1", b"\x04", (4,), "reach entry 4, beyond the end of a mask of 4"),
        ("relative:2:2", pack(np.array([3, 3]), 2), (5,), "beyond the end"),
        ("rows+bitmap", b"", (9, 2), "expected 2 bytes"),
        ("rows+bitmap", b"\x01\x00", (9, 9), "expected 2 bytes for 9 codes of 1 bits, got 0"),
        ("rows+ones", b"", (), "needs a first axis"),
        ("ones", b"", (-1, 4), r"lengths >= 0, got \(-1, 4\)"),
    ],
)
def test_hostile_input_is_refused(scheme: str, data: bytes, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_mask(scheme, data, shape)


def test_random_bytes_decode_to_the_declared_shape_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(500):
        count = int(rng.integers(0, 12))
        scheme = f"{rng.choice(['', 'rows+'])}{rng.choice(['bitmap', f'relative:{rng.integers(2, 9)}:{count}'])}"
        try:
            outcomes.add(decode_mask(scheme, rng.bytes(int(rng.integers(0, 9))), (6, 5)).shape)
        except ValueError:
            outcomes.add(())
    assert outcomes == {(6, 5), ()}
