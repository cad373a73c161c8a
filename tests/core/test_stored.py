import pytest
import torch

from lightning_compress.core.stored import Stored, along


def coded(axis: int | None, *, symmetric: bool, mask: bool = True) -> Stored:
    generator = torch.Generator().manual_seed(0)
    low, high = (-7, 8) if symmetric else (0, 16)
    codes = torch.randint(low, high, (3, 4, 2), generator=generator)
    size = () if axis is None else (codes.shape[axis],)
    scale = torch.rand(size, generator=generator) + 0.01
    zero = torch.zeros(size) if symmetric else torch.randint(0, 16, size, generator=generator).float()
    stored = Stored(torch.zeros(codes.shape)).coded(codes, scale, zero, bits=4, axis=axis, symmetric=symmetric)
    return stored.masked(torch.rand(codes.shape, generator=generator) < 0.6) if mask else stored


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_value_is_the_dequantized_codes_bit_for_bit(axis: int | None, symmetric: bool) -> None:
    stored = coded(axis, symmetric=symmetric)
    assert stored.codes is not None
    assert stored.scale is not None
    assert stored.zero_point is not None
    assert stored.mask is not None
    for place in torch.cartesian_prod(*(torch.arange(n) for n in stored.value.shape)).tolist():
        channel = () if axis is None else (place[axis],)
        code, zero = int(stored.codes[tuple(place)]), int(stored.zero_point[channel])
        value = torch.tensor(float(code - zero)) * stored.scale[channel]
        expected = value if bool(stored.mask[tuple(place)]) else torch.tensor(0.0)
        assert torch.equal(stored.value[tuple(place)], expected)
    assert torch.equal(stored.dequantize(), stored.value)
    assert stored.dequantize().dtype == torch.float32


def test_dtypes_on_disk() -> None:
    stored = coded(0, symmetric=False)
    assert stored.codes is not None
    assert stored.scale is not None
    assert stored.zero_point is not None
    assert (stored.codes.dtype, stored.scale.dtype, stored.zero_point.dtype) == (
        torch.int16,
        torch.float32,
        torch.int32,
    )


def test_masks_add_up_and_broadcast() -> None:
    stored = Stored(torch.tensor([[1.0, -2.0], [-3.0, 4.0]])).masked(torch.tensor([[True], [False]]))
    assert stored.value.tolist() == [[1.0, -2.0], [0.0, 0.0]]
    again = stored.masked(torch.tensor([[False, True], [True, True]]))
    assert again.value.tolist() == [[0.0, -2.0], [0.0, 0.0]]
    assert again.mask is not None
    assert again.mask.tolist() == [[False, True], [False, False]]
    assert not torch.signbit(again.value[1]).any()
    assert again.sparsity == 0.75


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dim", [0, 1])
def test_take_along_and_against_the_axis(axis: int | None, dim: int) -> None:
    stored, index = coded(axis, symmetric=False), torch.tensor([0, 2])
    taken = stored.take(dim, index)
    assert torch.equal(taken.value, stored.value.index_select(dim, index))
    assert torch.equal(taken.dequantize(), taken.value)
    assert taken.scale is not None
    assert taken.scale.shape == (() if axis is None else (taken.value.shape[axis],))
    assert taken.mask is not None
    assert taken.mask.shape == taken.value.shape


def test_take_on_a_raw_vector() -> None:
    assert Stored(torch.tensor([1.0, 2.0, 3.0])).take(0, torch.tensor([2])).value.tolist() == [3.0]


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 1, 1)), (1, (1, 3, 1)), (2, (1, 1, 3))])
def test_along(axis: int, shape: tuple[int, ...]) -> None:
    assert along(torch.ones(3), axis, 3).shape == shape
    assert along(torch.ones(()), None, 3).shape == ()


def test_sparsity_counts_exact_zeros_of_the_value() -> None:
    assert Stored(torch.tensor([0.0, 1.0, -0.0, 2.0])).sparsity == 0.5
    assert (
        Stored(torch.zeros(2)).coded(torch.tensor([5, 6]), torch.tensor(1.0), torch.tensor(5), bits=4).sparsity == 0.5
    )


def test_groups_share_scales_and_keep_them_when_channels_go() -> None:
    codes = torch.arange(2 * 5 * 2).reshape(2, 5, 2, 1) % 7 - 3
    scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    stored = Stored(torch.zeros(2, 5, 2, 1)).coded(codes, scale, bits=4, groups=torch.tensor([3, 2]))
    wide = torch.tensor([[1.0, 1.0, 1.0, 2.0, 2.0], [4.0, 4.0, 4.0, 8.0, 8.0]])
    assert torch.equal(stored.value, codes * wide[:, :, None, None])
    index = torch.tensor([0, 3, 4])
    taken = stored.take(1, index)
    assert taken.groups is not None
    assert taken.groups.tolist() == [1, 2]
    assert torch.equal(taken.dequantize(), stored.value[:, index])
    rows = stored.take(0, torch.tensor([1]))
    assert torch.equal(rows.dequantize(), stored.value[1:])


def test_levels_stand_for_single_weights_or_for_neighbours() -> None:
    levels = torch.tensor([-1.0, 0.0, 0.5])
    codes = torch.tensor([[2, 0], [1, 2]])
    stored = Stored(torch.zeros(2, 2)).chosen(codes, levels, torch.tensor([1.0, -2.0]), axis=0)
    assert stored.bits == 2
    assert stored.value.tolist() == [[0.5, -1.0], [0.0, -1.0]]
    assert torch.equal(stored.take(0, torch.tensor([1])).dequantize(), stored.value[1:])
    assert torch.equal(stored.take(1, torch.tensor([1])).dequantize(), stored.value[:, 1:])
    pairs = Stored(torch.zeros(2, 4)).chosen(codes, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert pairs.value.tolist() == [[5.0, 6.0, 1.0, 2.0], [3.0, 4.0, 5.0, 6.0]]
    assert torch.equal(pairs.take(0, torch.tensor([1])).dequantize(), pairs.value[1:])
    with pytest.warns(UserWarning, match="stored as plain floats"):
        plain = pairs.take(1, torch.tensor([0, 3]))
    assert plain.codes is None
    assert plain.value.tolist() == [[5.0, 2.0], [3.0, 6.0]]
