import time

import numpy as np
import pytest

from lightning_compress.coding.bits import pack, packed_size, unpack


def reference(codes: np.ndarray, bits: int) -> bytes:
    """One big integer, written little-endian: an independent form of the layout."""
    total = sum(int(code) << (place * bits) for place, code in enumerate(codes))
    return total.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("bits", range(1, 25))
def test_layout_length_and_round_trip(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for count in (0, 1, 2, 7, 8, 9, 255, 1001):
        codes = rng.integers(0, 1 << bits, count)
        data = pack(codes, bits)
        assert len(data) == packed_size(count, bits) == int(np.ceil(count * bits / 8))
        assert data == reference(codes, bits)
        back = unpack(data, count, bits)
        assert back.dtype == (np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)
        np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_hand_worked_bytes_for_every_dtype(dtype: type[np.integer]) -> None:
    # 5 = 101, 2 = 010, 7 = 111, lowest bit first: 101 010 11|1 -> 0b11010101, 0b00000001
    assert pack(np.array([5, 2, 7], dtype), 3) == bytes([0b11010101, 0b1])


def test_one_bit_agrees_with_numpy() -> None:
    mask = np.random.default_rng(0).random(1003) < 0.3
    assert pack(mask.astype(np.uint8), 1) == np.packbits(mask, bitorder="little").tobytes()


def test_extremes_and_any_shape_and_stride() -> None:
    codes = np.array([[0, 65535, 1], [32768, 0, 65535]], np.uint16)
    np.testing.assert_array_equal(unpack(pack(codes, 16), 6, 16), codes.reshape(-1))
    np.testing.assert_array_equal(unpack(pack(codes.T, 16), 6, 16), codes.T.reshape(-1))


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.array([0, 8]), 3, r"expected codes in 0\.\.7 \(3 bits\), got 0\.\.8"),
        (np.array([-1, 2], np.int8), 3, r"got -1\.\.2"),
        (np.array([1.0]), 3, "integer codes, got dtype float64"),
        (np.array([True]), 1, "integer codes, got dtype bool"),
        (np.array([0]), 0, r"bits in 1\.\.24, got 0"),
        (np.array([0]), 25, r"bits in 1\.\.24, got 25"),
    ],
)
def test_pack_refuses(codes: np.ndarray, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(codes, bits)


@pytest.mark.parametrize("data", [b"", b"\0" * 3, b"\0" * 5])
def test_unpack_refuses_data_of_another_length(data: bytes) -> None:
    with pytest.raises(ValueError, match=f"expected 4 bytes for 10 codes of 3 bits, got {len(data)}"):
        unpack(data, 10, 3)


def test_unpack_refuses_a_hostile_count_before_taking_memory() -> None:
    with pytest.raises(ValueError, match="expected 2250000000000000000 bytes"):
        unpack(b"\0", 6 * 10**18, 3)
    with pytest.raises(ValueError, match="count of codes >= 0, got -1"):
        unpack(b"", -1, 3)


def test_a_million_codes_are_fast() -> None:
    codes = np.random.default_rng(0).integers(0, 32, 1_000_000).astype(np.uint8)
    start = time.perf_counter()
    back = unpack(pack(codes, 5), codes.size, 5)
    assert time.perf_counter() - start < 0.5  # a Python loop over the codes takes longer than that
    np.testing.assert_array_equal(back, codes)
