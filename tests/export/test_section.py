from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_compress.coding.reader import Reader
from lightning_compress.core.stored import Stored
from lightning_compress.export.section import Tables, decode, encode

SHAPES = [(4, 6), (8, 3, 3, 3), (12, 20), (1, 1), (30, 2, 5), (5, 8)]


def again(stored: Stored, tables: Tables | None = None, known: Tables | None = None) -> tuple[Stored, int]:
    how, data = encode(stored, tables or Tables())
    reader = Reader(data + b"rest")
    back = decode(list(stored.value.shape), how, reader, known or Tables())
    assert reader.left == 4
    assert len(data) == reader.at
    return back, len(data)


def same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first, second)


def check(stored: Stored) -> int:
    """Decode what was encoded and compare all that is stored, but for what a mask leaves out; returns the bytes."""
    back, size = again(stored)
    assert back.value.dtype == stored.value.dtype
    assert torch.equal(back.value, stored.value)
    if stored.value.dtype == torch.float32:
        words = torch.where(stored.value == 0, 0.0, stored.value).view(torch.int32)
        assert torch.equal(torch.where(back.value == 0, 0.0, back.value).view(torch.int32), words)
    assert torch.equal(back.dequantize(), back.value)
    assert (back.axis, back.symmetric, back.bits) == (stored.axis, stored.symmetric, stored.bits)
    assert same(back.scale, stored.scale)
    assert same(back.zero_point, stored.zero_point)
    assert same(back.levels, stored.levels)
    assert same(back.groups, stored.groups)
    assert back.mask is None or same(back.mask, stored.mask)
    if stored.codes is not None and back.codes is not None:
        kept = stored.mask if stored.mask is not None and stored.mask.shape == stored.codes.shape else None
        assert back.codes.dtype == stored.codes.dtype
        assert torch.equal(
            back.codes if kept is None else back.codes[kept], stored.codes if kept is None else stored.codes[kept]
        )
    return size


class Draw:
    """Seeded random tensors."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shape = SHAPES[seed % len(SHAPES)]

    def whole(self, low: int, high: int, size: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, size, generator=self.generator)

    def floats(self, *size: int) -> Tensor:
        return torch.rand(size, generator=self.generator) + 0.01

    def masked(self, stored: Stored) -> Stored:
        density = (0.0, 0.1, 0.5, 0.97, 1.0, 2.0)[int(self.whole(0, 6, ()))]
        if density == 2.0:
            return stored
        return stored.masked(torch.rand(self.shape, generator=self.generator) < density)


def raw(draw: Draw) -> Stored:
    return Stored(torch.randn(draw.shape, generator=draw.generator))


def uniform(draw: Draw) -> Stored:
    bits, symmetric = int(draw.whole(1, 9, ())), bool(draw.whole(0, 2, ()))
    axis = [None, 0, 1][int(draw.whole(0, 3, ()))]
    size = () if axis is None else (draw.shape[axis],)
    high = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    codes = draw.whole(-high if symmetric else 0, high + 1, draw.shape)
    zero = None if symmetric else draw.whole(0, high + 1, size)
    return Stored(torch.empty(draw.shape)).coded(
        codes, draw.floats(*size), zero, bits=bits, axis=axis, symmetric=symmetric
    )


def grouped(draw: Draw) -> Stored:
    symmetric, columns = bool(draw.whole(0, 2, ())), draw.shape[1]
    size = int(draw.whole(1, columns + 1, ()))
    sizes = torch.tensor([min(size, columns - start) for start in range(0, columns, size)])
    if draw.whole(0, 2, ()):
        sizes = sizes.flip(0)
    scales = (draw.shape[0], len(sizes))
    codes = draw.whole(-7 if symmetric else 0, 8, draw.shape)
    zero = None if symmetric else draw.whole(0, 16, scales)
    return Stored(torch.empty(draw.shape)).coded(
        codes, draw.floats(*scales), zero, bits=4, symmetric=symmetric, groups=sizes
    )


def levels(draw: Draw) -> Stored:
    number = int(draw.whole(1, 40, ()))
    axis = [None, None, 0, 1][int(draw.whole(0, 4, ()))]
    scale = draw.floats(draw.shape[axis]) if axis is not None else [None, draw.floats()][int(draw.whole(0, 2, ()))]
    values = torch.randn(number, generator=draw.generator)
    return Stored(torch.empty(draw.shape)).chosen(draw.whole(0, number, draw.shape), values, scale, axis=axis)


def blocks(draw: Draw) -> Stored:
    rows, columns = draw.shape[0], int(torch.tensor(draw.shape[1:]).prod())
    length = next(length for length in (3, 2, 5, 1) if columns % length == 0)
    number = int(draw.whole(1, 20, ()))
    values = torch.randn(number, length, generator=draw.generator)
    scale = draw.floats(rows) if draw.whole(0, 2, ()) else None
    codes = draw.whole(0, number, (rows, columns // length))
    return Stored(torch.empty(draw.shape)).chosen(codes, values, scale, axis=None if scale is None else 0)


KINDS: list[Callable[[Draw], Stored]] = [raw, uniform, grouped, levels, blocks]


@pytest.mark.parametrize("kind", KINDS)
def test_random_tensors_of_every_kind_come_back_bit_for_bit(kind: Callable[[Draw], Stored]) -> None:
    for seed in range(60):
        draw = Draw(seed)
        check(draw.masked(kind(draw)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_whole_numbers_come_back(dtype: torch.dtype) -> None:
    value = torch.tensor([[0, 1, 1], [1, 0, 0]]).to(dtype)
    check(Stored(value))
    back, _ = again(Stored(value).masked(torch.tensor([[True, True, False], [False, False, False]])))
    assert back.value.tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (3, 0)])
def test_odd_shapes_come_back(shape: tuple[int, ...]) -> None:
    check(Stored(torch.randn(shape)))
    check(Stored(torch.randn(shape)).masked(torch.ones(shape, dtype=torch.bool)))
    check(Stored(torch.randn(shape)).coded(torch.ones(shape), torch.tensor(0.5), bits=4))
    check(Stored(torch.randn(shape)).chosen(torch.zeros(shape), torch.tensor([0.5, 1.0])))


def test_what_raw_floats_may_hold() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, -float("inf")])
    back, _ = again(Stored(odd))
    assert torch.equal(back.value.view(torch.int32), odd.view(torch.int32))


def test_all_codes_at_the_ends_of_eight_bits_and_more() -> None:
    for bits in (8, 12, 15):
        high = 2 ** (bits - 1) - 1
        check(Stored(torch.empty(3)).coded(torch.tensor([-high, 0, high]), torch.tensor(0.1), bits=bits))


def test_levels_are_written_once() -> None:
    values = torch.randn(32, generator=torch.Generator().manual_seed(0))
    first = Stored(torch.empty(40, 50)).chosen(torch.randint(0, 32, (40, 50)), values)
    tables, known = Tables(), Tables()
    sizes = []
    for stored in (first, first, first.chosen(torch.randint(0, 32, (40, 50)), values + 1)):
        back, size = again(stored, tables, known)
        assert same(back.levels, stored.levels)
        assert torch.equal(back.value, stored.value)
        sizes.append(size)
    assert sizes[0] - sizes[1] > 90
    assert abs(sizes[2] - sizes[0]) < 30
    assert len(known.found) == 2


def test_zeros_of_either_sign_are_different_levels() -> None:
    tables = Tables([torch.tensor([0.0, 1.0])])
    assert tables.index(torch.tensor([-0.0, 1.0])) == 1
    assert tables.index(torch.tensor([0.0, 1.0])) == 0
    assert tables.index(torch.tensor([[0.0, 1.0]])) == 1


def test_levels_that_are_evenly_spaced_take_two_numbers() -> None:
    codes = torch.randint(0, 32, (40, 50), generator=torch.Generator().manual_seed(0))
    even = check(Stored(torch.empty(40, 50)).chosen(codes, torch.linspace(-0.3, 0.4, 32)))
    odd = check(Stored(torch.empty(40, 50)).chosen(codes, torch.linspace(-0.3, 0.4, 32) ** 3))
    assert even < odd - 95


def test_groups_that_are_gone_are_not_written() -> None:
    codes = torch.randint(-7, 8, (3, 8))
    stored = Stored(torch.empty(3, 8)).coded(codes, torch.rand(3, 4) + 0.1, bits=4, groups=torch.tensor([2, 2, 2, 2]))
    back, _ = again(stored.take(1, torch.tensor([0, 1, 6])))
    assert torch.equal(back.value, stored.value[:, [0, 1, 6]])
    assert back.groups is not None
    assert back.groups.tolist() == [2, 1]


def test_too_many_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 65536 levels, got 65537"):
        encode(Stored(torch.zeros(1)).chosen(torch.zeros(1), torch.zeros(65537)), Tables())


def test_codes_that_do_not_fit_are_refused() -> None:
    stored = Stored(torch.zeros(2)).coded(torch.tensor([1, 9]), torch.tensor(1.0), bits=4)
    with pytest.raises(ValueError, match=r"expected symbols in 0\.\.14, got 8\.\.16"):
        encode(stored, Tables())
