import math
from collections.abc import Mapping
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lightning_compress.prune import allocate

SPARSITIES = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0]


def kept(keep: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in keep.items()}


@pytest.mark.parametrize("multiple", [1, 4, 16])
@pytest.mark.parametrize("size", [1, 3, 10, 16, 20, 64, 1000])
def test_num_kept_is_a_multiple_in_range_and_never_prunes_too_much(size: int, multiple: int) -> None:
    counts = [allocate.num_kept(size, sparsity, multiple) for sparsity in SPARSITIES]
    assert counts[0] == size
    assert counts == sorted(counts, reverse=True)
    for sparsity, count in zip(SPARSITIES, counts, strict=True):
        exact = Fraction(size) * (1 - Fraction(str(sparsity)))
        assert count % multiple == 0 or count == size
        assert 1 <= count <= size
        assert count >= exact - Fraction(1, 2)
        assert count <= max(exact + Fraction(1, 2) + multiple - 1, Fraction(multiple))


def test_num_kept_is_exact_where_floats_are_not() -> None:
    # 10 * (1 - 0.9) is 0.9999999999999998 and 1000 * (1 - 0.999) is 1.0000000000000009
    assert allocate.num_kept(10, 0.9) == 1
    assert allocate.num_kept(1000, 0.999) == 1
    assert [allocate.num_kept(100, s / 100) for s in range(100)] == [100 - s for s in range(100)]


def test_uniform_keeps_the_largest_under_each_name() -> None:
    scores = {"a": torch.tensor([0.5, 3.0, 1.0, 2.0]), "b": torch.tensor([30.0, 10.0, 20.0, 40.0, 50.0])}
    keep = allocate.uniform(scores, 0.5)
    assert keep["a"].tolist() == [False, True, False, True]
    assert keep["b"].tolist() == [True, False, False, True, True]


def test_overall_is_one_ranking() -> None:
    scores = {"a": torch.tensor([0.5, 3.0, 1.0, 2.0]), "b": torch.tensor([30.0, 10.0, 20.0, 40.0])}
    keep = allocate.overall(scores, 0.25)
    assert keep["a"].tolist() == [False, True, False, True]
    assert keep["b"].all()


def test_overall_never_empties_a_name() -> None:
    keep = allocate.overall({"small": torch.tensor([0.1, 0.2]), "large": torch.arange(1.0, 11.0)}, 0.9)
    assert keep["small"].tolist() == [False, True]
    assert kept(keep) == {"small": 1, "large": 1}


@pytest.mark.parametrize("sparsity", [0.1, 0.333, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("kind", ["spread", "ties", "zeros", "gone"])
def test_counts_are_exact_whatever_the_ties(kind: str, sparsity: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(size, generator=generator) + 0.1 for name, size in (("a", 100), ("b", 37), ("c", 500))}
    if kind == "ties":
        scores = {name: torch.ones(len(score)) for name, score in scores.items()}
    if kind == "zeros":
        scores = {name: score * (torch.arange(len(score)) < 3) for name, score in scores.items()}
    if kind == "gone":
        scores = {name: score.masked_fill(torch.arange(len(score)) >= 3, -math.inf) for name, score in scores.items()}
    uniform, overall = allocate.uniform(scores, sparsity), allocate.overall(scores, sparsity)
    assert kept(uniform) == {name: allocate.num_kept(len(score), sparsity) for name, score in scores.items()}
    expected = allocate.num_kept(637, sparsity)
    empty = 0 if kind == "spread" and sparsity < 0.9 else 2  # one name may win all: each other still keeps one
    assert expected <= sum(kept(overall).values()) <= expected + empty
    for name, score in scores.items():  # nothing that goes beats what stays
        for keep in (uniform, overall):
            gone = score[~keep[name]]
            assert not len(gone) or gone.max() <= score[keep[name]].min()


@pytest.mark.parametrize("function", [allocate.uniform, allocate.overall])
def test_multiples(function: object) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(size, generator=generator) for name, size in (("a", 64), ("b", 32), ("c", 20), ("d", 8))}
    assert callable(function)
    counts = kept(function(scores, 0.6, 16))
    assert all(counts[name] % 16 == 0 for name in "ab")
    assert counts["c"] in (16, 20)
    assert counts["d"] == 8
    assert sum(counts.values()) >= round(124 * 0.4)


def test_han_threshold_by_hand() -> None:
    weights = torch.tensor([-3.0, 0.5, 1.0, -0.1, 2.0, 0.0])
    std = math.sqrt((9 + 0.25 + 1 + 0.01 + 4) / 6)  # 1.5416
    for quality, expected in [(0.3, [1, 1, 1, 0, 1, 0]), (0.5, [1, 0, 1, 0, 1, 0]), (1.5, [1, 0, 0, 0, 0, 0])]:
        assert (weights.abs() >= quality * std).int().tolist() == expected
        assert allocate.above({"a": weights.abs()}, quality)["a"].int().tolist() == expected


def test_threshold_is_each_names_own_and_counts_the_gone_as_zeros() -> None:
    scores = {"a": torch.tensor([3.0, 4.0, 100.0]), "b": torch.tensor([0.03, 0.04, 1.0])}
    assert {name: keep.tolist() for name, keep in allocate.above(scores, 0.5).items()} == {
        "a": [False, False, True],
        "b": [False, False, True],
    }
    gone = torch.tensor([-math.inf, 1.0, 1.0, -math.inf])  # threshold 0.9 * sqrt(2 / 4) = 0.64
    assert allocate.above({"a": gone}, 0.9)["a"].tolist() == [False, True, True, False]
    assert allocate.above({"a": gone}, 0.0)["a"].tolist() == [False, True, True, False]


def test_a_threshold_above_everything_leaves_the_largest() -> None:
    assert allocate.above({"a": torch.tensor([1.0, 2.0, 1.5])}, 50.0)["a"].tolist() == [False, True, False]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("gone", [0.0, 0.6])
def test_the_largest_of_many_are_those_of_a_sort(sparsity: float, gone: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for score in (torch.randn(50_000, generator=generator), torch.randint(0, 300, (50_000,), generator=generator) / 7):
        score = score.masked_fill(torch.rand(50_000, generator=generator) < gone, -math.inf)
        count = allocate.num_kept(len(score), sparsity)
        keep = allocate.top(score, count)
        assert int(keep.sum()) == count
        assert torch.equal(score[keep].sort().values, score.sort(descending=True).values[:count].flip(0))


LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def _drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.rand(math.prod(shape)) for name, shape in shapes.items()}


def test_erdos_renyi_by_hand() -> None:
    """LeNet-300-100 at 90 %: 26,620 of 266,200 weights stay; fc3 would need 1,000 * 0.11 * 17.6 = 1,936 > 1,000.

    fc3 stays whole, and (300 + 784) and (100 + 300) share the other 25,620 weights.
    """
    counts = kept(allocate.erdos_renyi(_drawn(LENET), 0.9, shapes=LENET))
    assert counts["fc3"] == 1000
    assert counts["fc1"] == round(25_620 * 1084 / 1484)
    assert sum(counts.values()) == 26_620
    counts = kept(allocate.erdos_renyi(_drawn(LENET), 0.98, shapes=LENET))  # 5,324 over 1084 + 400 + 110
    assert counts == {"fc1": 3621, "fc2": 1336, "fc3": 367}


def test_kernels_count_in_erdos_renyi_kernel_only() -> None:
    shapes = {"conv": (8, 4, 3, 3), "fc": (10, 32)}
    scores = _drawn(shapes)  # 288 and 320 weights; 30 of them stay
    kernel = kept(allocate.erdos_renyi_kernel(scores, 1 - 30 / 608, shapes=shapes))
    plain = kept(allocate.erdos_renyi(scores, 1 - 30 / 608, shapes=shapes))
    # 8 + 4 + 3 + 3 = 18 against 10 + 32 = 42; without kernels 9 * (8 + 4) = 108 against 42
    assert kernel == {"conv": 9, "fc": 21}
    assert plain == {"conv": 22, "fc": 8}  # 21.6 and 8.4


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.95])
def test_erdos_renyi_reaches_the_total(sparsity: float) -> None:
    shapes = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (32, 1, 3, 3), "d": (10, 32)}
    for function in (allocate.erdos_renyi, allocate.erdos_renyi_kernel):
        counts = kept(function(_drawn(shapes), sparsity, shapes=shapes))
        assert sum(counts.values()) == allocate.num_kept(sum(math.prod(s) for s in shapes.values()), sparsity)


def test_groups_keep_alike() -> None:
    keep = allocate.in_groups({"a": torch.tensor([1.0, 4.0, 3.0, 2.0, -math.inf, 0.0, -math.inf, 1.0])}, 0.5, size=4)
    assert keep["a"].tolist() == [False, True, True, False, False, True, False, True]
    assert allocate.in_groups({"a": torch.arange(8.0)}, 0.0, size=4)["a"].all()
