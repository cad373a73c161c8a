import numpy as np
import pytest
import torch

from lightning_compress.coding.floats import decode_floats, encode_floats, form_of
from lightning_compress.coding.reader import Reader

RNG = np.random.default_rng(0)
CASES = {
    "normal": RNG.normal(0, 0.1, 300),
    "positive": RNG.uniform(0.1, 3, 64),
    "wide": RNG.normal(0, 1, 500) * 10.0 ** RNG.integers(-30, 30, 500),
    "every word": RNG.integers(0, 2**32, 700, np.uint64).astype(np.uint32).view(np.float32),
    "bfloat16": torch.randn(300, generator=torch.Generator().manual_seed(0)).bfloat16().float().numpy(),
    "half zeros": RNG.normal(0, 1, 100) * (RNG.random(100) < 0.5),
    "zeros": np.zeros(300),
    "minus zeros": -np.zeros(300),
    "odd": [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-40, 3.4e38],
    "nans": np.array([0x7FC00001, 0xFFC00000, 0x7F800001], np.uint32).view(np.float32),
    "powers of two": [0, 0.25, 0.5, 1, -1, -0.5, -0.25],
    "one": [0.3],
    "two": [0.3, -0.1],
    "none": [],
    "far apart": [-3.4e38, 3.4e38],
    "same": [0.7] * 9,
}


@pytest.mark.parametrize("case", CASES)
def test_bit_for_bit_and_never_longer_than_a_byte_more(case: str) -> None:
    values = np.array(CASES[case], np.float32)
    data = encode_floats(values)
    assert len(data) <= 4 * values.size + (values.size > 1)
    reader = Reader(data + b"x")
    back = decode_floats(reader, values.size)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))
    assert reader.left == 1


def test_exponents_are_coded_and_zeros_at_the_end_are_not() -> None:
    normal = np.array(CASES["normal"], np.float32)
    exponents = np.unique(normal.view(np.uint32) >> 23, return_counts=True)[1]
    bound = 300 * 23 / 8 - (exponents * np.log2(exponents / 300)).sum() / 8
    assert bound < len(encode_floats(normal)) < bound + 30
    assert len(encode_floats(np.array(CASES["bfloat16"], np.float32))) < 300 * (7 + 5) / 8
    assert len(encode_floats(np.zeros(10_000, np.float32))) < 8


def sequences() -> dict[str, np.ndarray]:
    first, last, step = np.float32(-0.317), np.float32(0.431), np.float32(0.0137)
    places = torch.arange(32.0)
    width = torch.tensor(last) - torch.tensor(first)
    return {
        "product rounded": (torch.tensor(first) + places * torch.tensor(step)).numpy(),
        "rounded once": (np.float64(first) + np.arange(32) * np.float64(step)).astype(np.float32),
        "affine levels": (places / 31 * width + torch.tensor(first)).numpy(),
        "torch.linspace": torch.linspace(float(first), float(last), 32).numpy(),
        "dorefa": (2.0 * (torch.arange(16.0) / 15) - 1.0).numpy(),
        "integers": np.arange(-7, 8).astype(np.float32),
        "ternary": np.array([-0.3, 0, 0.3], np.float32),
    }


@pytest.mark.parametrize("case", sequences())
def test_sequences_take_two_numbers(case: str) -> None:
    values = sequences()[case]
    data = encode_floats(values)
    assert (form_of(data), len(data)) == ("sequence", 9)
    np.testing.assert_array_equal(decode_floats(Reader(data), values.size).view(np.uint32), values.view(np.uint32))


def test_random_lines_of_torch_are_recognised() -> None:
    for count in (2, 3, 31, 32, 256):
        first, last = RNG.normal(0, 1, 2)
        assert len(encode_floats(torch.linspace(float(first), float(last), count).numpy())) <= 9


def test_a_sequence_that_is_off_in_the_last_place_is_not_taken_for_one() -> None:
    values = sequences()["torch.linspace"].copy()
    values[17] = np.nextafter(values[17], np.float32(1))
    data = encode_floats(values)
    assert form_of(data) != "sequence"
    np.testing.assert_array_equal(decode_floats(Reader(data), 32), values)


@pytest.mark.parametrize("longest", [1, 7, 127])
def test_levels_on_a_grid_take_whole_numbers(longest: int) -> None:
    places = RNG.integers(-longest, longest + 1, 40)
    places[:2] = longest, 0
    values = places.astype(np.float32) * np.float32(0.00371)
    data = encode_floats(values)
    assert form_of(data) == "grid"
    assert len(data) < 5 + 40 * 8 / 8 + 4
    np.testing.assert_array_equal(decode_floats(Reader(data), 40), values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "declared where 0"),
        (b"\0" * 8, "16 bytes declared where 7"),
        (b"\x04" + b"\0" * 16, "begins with 4, which none does"),
        (bytes([1 | 24 << 2]) + b"\0" * 9, "which none does"),
        (bytes([3 | 4 << 2]) + b"\0" * 9, "which none does"),
        (bytes([2 | 1 << 2]) + b"\0" * 9, "which none does"),
        (bytes([1, 200, 100]) + b"\0" * 9, "an exponent of 300"),
        (bytes([3]) + b"\0" * 7, "8 bytes declared where 7"),
    ],
)
def test_damaged_data_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_floats(Reader(data), 4)
