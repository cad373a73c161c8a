import itertools

import pytest
import torch

from lightning_compress.data.order import BatchOrder


def _epoch(order: BatchOrder) -> list[list[int]]:
    return [draw.positions.tolist() for draw in order.draws()]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("count", "batch_size", "world"),
    [case for case in itertools.product([7, 8, 9, 16, 17], [2, 3, 4], [1, 2, 3])],
)
def test_ranks_share_each_epoch_without_overlap(count: int, batch_size: int, world: int, shuffle: bool) -> None:
    ranks = [_epoch(BatchOrder(count, batch_size, shuffle=shuffle, shard=(rank, world))) for rank in range(world)]
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(count))
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) == len(BatchOrder(count, batch_size, shard=(0, world)))
    assert all(1 <= len(batch) <= batch_size for rank in ranks for batch in rank)


@pytest.mark.parametrize(("count", "batch_size", "world", "batches"), [(17, 4, 1, 4), (17, 4, 2, 2), (9, 2, 3, 1)])
def test_drop_last_keeps_full_batches_only(count: int, batch_size: int, world: int, batches: int) -> None:
    ranks = [
        _epoch(BatchOrder(count, batch_size, shuffle=True, drop_last=True, shard=(rank, world)))
        for rank in range(world)
    ]
    assert all([len(batch) for batch in rank] == [batch_size] * batches for rank in ranks)
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert len(seen) == len(set(seen))


def test_one_rank_in_order_is_plain_chunks() -> None:
    assert _epoch(BatchOrder(10, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_short_shard_spares_a_sample_for_its_last_batch() -> None:
    # 5 samples, 2 ranks, batches of 2: rank 1 has 2 samples but must make 2 batches as rank 0 does
    assert _epoch(BatchOrder(5, 2, shard=(0, 2))) == [[0, 2], [4]]
    assert _epoch(BatchOrder(5, 2, shard=(1, 2))) == [[1], [3]]


def test_epoch_and_seed_choose_the_permutation() -> None:
    def epoch(seed: int, epoch: int) -> list[list[int]]:
        order = BatchOrder(50, 8, shuffle=True, seed=seed)
        order.set_epoch(epoch)
        return _epoch(order)

    different = [epoch(seed, number) for seed in (0, 1, 2**32) for number in (0, 1, 2)]
    assert epoch(0, 1) == epoch(0, 1)
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_unshuffled_order_ignores_the_epoch() -> None:
    order = BatchOrder(5, 2)
    first = _epoch(order)
    order.set_epoch(3)
    assert _epoch(order) == first


def test_transform_seeds_differ_by_everything() -> None:
    seeds = set()
    for seed, epoch, rank in itertools.product((0, 1), (0, 1), (0, 1)):
        order = BatchOrder(40, 4, seed=seed, shard=(rank, 2))
        order.set_epoch(epoch)
        seeds |= {draw.seed % 2**32 for draw in order.draws()}  # what the CPU generator sees
    assert len(seeds) == 8 * 5


def test_epoch_is_read_at_the_first_batch() -> None:
    order, reference = BatchOrder(20, 4, shuffle=True), BatchOrder(20, 4, shuffle=True)
    reference.set_epoch(2)
    draws = order.draws()
    order.set_epoch(2)
    assert [draw.positions.tolist() for draw in draws] == _epoch(reference)


def test_resume_inside_an_epoch_gives_the_rest_once() -> None:
    order = BatchOrder(20, 4, shuffle=True)
    order.set_epoch(3)
    whole = list(order.draws())
    order.done = 2
    resumed = BatchOrder(20, 4, shuffle=True)
    resumed.load_state_dict(order.state_dict())
    resumed.set_epoch(3)
    rest = list(resumed.draws())
    assert [(d.number, d.seed, d.positions.tolist()) for d in rest] == [
        (d.number, d.seed, d.positions.tolist()) for d in whole[2:]
    ]
    assert len(list(resumed.draws())) == 5


def test_a_finished_epoch_leaves_nothing_to_skip() -> None:
    order = BatchOrder(20, 4, shuffle=True)
    order.load_state_dict({"epoch": 0, "done": 5})
    assert len(list(order.draws())) == 5
    order.load_state_dict({"epoch": 0, "done": 2})
    order.set_epoch(1)
    assert len(list(order.draws())) == 5
    assert order.state_dict() == {"epoch": 1, "done": 0}


@pytest.mark.parametrize(
    ("count", "batch_size", "drop_last", "world"),
    [(0, 4, False, 1), (3, 4, True, 1), (3, 1, False, 2), (2, 4, False, 3)],
)
def test_too_few_samples_are_refused(count: int, batch_size: int, drop_last: bool, world: int) -> None:
    with pytest.raises(ValueError, match=f"{count} samples cannot give each of {world} ranks"):
        BatchOrder(count, batch_size, drop_last=drop_last, shard=(0, world))


def test_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        BatchOrder(5, 0)


def test_global_random_state_stays() -> None:
    before = torch.random.get_rng_state()
    _epoch(BatchOrder(20, 4, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("count", "world"), [(1000, 1), (1003, 2), (30, 1), (3, 1)])
def test_padded_samples_are_batched_by_length(count: int, world: int) -> None:
    lengths = torch.randint(1, 60, (count,), generator=torch.Generator().manual_seed(0))
    ranks = [BatchOrder(count, 4, shuffle=True, shard=(rank, world), lengths=lengths) for rank in range(world)]
    draws = [list(order.draws()) for order in ranks]
    assert sorted(i for own in draws for draw in own for i in draw.positions.tolist()) == list(range(count))
    for draw in (draw for own in draws for draw in own):
        longest = int(lengths[draw.positions].max())
        assert draw.length is not None
        assert draw.length % 8 == 0
        assert longest <= draw.length < longest + 8
    if count >= 1000:
        spread = [int(lengths[draw.positions].max() - lengths[draw.positions].min()) for draw in draws[0][:-1]]
        assert sum(spread) / len(spread) < 4, "neighbours are about as long"
        longest_first = [draw.length or 0 for draw in draws[0]]
        assert longest_first != sorted(longest_first), "but batches come in any order"


def test_batches_by_length_differ_from_epoch_to_epoch_and_resume() -> None:
    lengths = torch.arange(40) % 7 + 1
    order = BatchOrder(40, 4, shuffle=True, lengths=lengths)
    first = _epoch(order)
    order.set_epoch(1)
    second = _epoch(order)
    assert first != second
    again = BatchOrder(40, 4, shuffle=True, lengths=lengths)
    again.load_state_dict({"epoch": 1, "done": 3})
    assert _epoch(again) == second[3:]


def test_in_stored_order_padded_samples_stay_where_they_are() -> None:
    draws = list(BatchOrder(5, 2, lengths=torch.tensor([1, 9, 3, 3, 17])).draws())
    assert [(draw.positions.tolist(), draw.length) for draw in draws] == [([0, 1], 16), ([2, 3], 8), ([4], 24)]
