import pytest
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor

from lightning_compress.data.splits import held_out, train_val, train_val_test


def _labels() -> Tensor:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate([100, 37, 8, 3])])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]


def test_parts_partition_the_set_in_order() -> None:
    parts = train_val_test(_labels(), val_fraction=0.2, test_fraction=0.3, seed=0)
    assert torch.cat(parts).sort().values.tolist() == list(range(148))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)


def test_counts_per_class_by_hand() -> None:
    labels = _labels()
    train, val, test = train_val_test(labels, val_fraction=0.2, test_fraction=0.3, seed=0)
    # 30 samples: 20.3, 7.5, 1.6, 0.6 and 44: 29.7, 11.0, 2.4, 0.9; the largest remainders are rounded up
    assert torch.bincount(labels[val]).tolist() == [20, 7, 2, 1]
    assert torch.bincount(labels[test]).tolist() == [30, 11, 2, 1]
    assert torch.bincount(labels[train]).tolist() == [50, 19, 4, 1]


def test_proportions_agree_with_scikit_learn() -> None:
    labels = torch.randint(10, (5000,), generator=torch.Generator().manual_seed(0))
    _, val = train_val(labels, val_fraction=0.1, seed=0)
    reference = StratifiedShuffleSplit(1, test_size=0.1, random_state=0).split(torch.zeros(5000), labels)
    expected = torch.bincount(labels[next(iter(reference))[1]])
    assert (torch.bincount(labels[val]) - expected).abs().max() <= 1


def test_the_smallest_class_is_in_every_part() -> None:
    labels = torch.tensor([0] * 1000 + [1, 1])
    train, val = train_val(labels, val_fraction=0.01, seed=0)
    assert 1 in labels[train]
    assert 1 in labels[val]
    assert len(val) == 11


def test_class_numbers_may_have_gaps() -> None:
    train, val = train_val(torch.tensor([5, 5, 2, 2]), val_fraction=0.5, seed=0)
    assert len(train) == len(val) == 2


def test_seed_decides_and_global_state_stays() -> None:
    labels, before = _labels(), torch.random.get_rng_state()
    first, again, other = (train_val(labels, val_fraction=0.2, seed=seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_members_are_drawn_from_the_whole_class() -> None:
    labels = torch.zeros(100, dtype=torch.long)
    drawn = torch.zeros(100)
    for seed in range(200):
        drawn[train_val(labels, val_fraction=0.1, seed=seed)[1]] += 1
    # 20 draws expected each; 6 standard deviations of a binomial either way
    assert drawn.min() > 0
    assert drawn.max() < 20 + 6 * 18**0.5


def test_test_part_does_not_depend_on_the_validation_share() -> None:
    tests = [train_val_test(_labels(), val_fraction=f, test_fraction=0.2, seed=4)[2].tolist() for f in (0.1, 0.4)]
    assert tests[0] == tests[1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_fraction_outside_0_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="above 0 and sum to less than 1"):
        train_val(_labels(), val_fraction=fraction, seed=0)


def test_fractions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to less than 1"):
        train_val_test(_labels(), val_fraction=0.5, test_fraction=0.5, seed=0)


def test_class_too_small_is_named() -> None:
    with pytest.raises(ValueError, match="class 1 has 1 samples, too few for 2 parts"):
        train_val(torch.tensor([0, 0, 0, 1]), val_fraction=0.25, seed=0)


def test_one_call_holds_out_what_is_asked_for() -> None:
    labels = _labels()
    train, val, test = held_out(labels, val_fraction=0.2, test_fraction=None, seed=3)
    assert test is None
    assert [x.tolist() for x in (train, val)] == [x.tolist() for x in train_val(labels, val_fraction=0.2, seed=3)]
    parts = held_out(labels, val_fraction=0.2, test_fraction=0.1, seed=3, limit=5)
    whole = train_val_test(labels, val_fraction=0.2, test_fraction=0.1, seed=3)
    assert len(parts[0]) == 5
    assert set(parts[0].tolist()) < set(whole[0].tolist())
    assert parts[2] is not None
    assert torch.equal(parts[2], whole[2])
    with pytest.raises(ValueError, match="limit must be between 1 and the"):
        held_out(labels, val_fraction=0.2, test_fraction=None, seed=3, limit=0)
