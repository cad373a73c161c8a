import pytest
import torch
from sklearn.datasets import load_digits

from lightning_compress.data.digits import Digits


def test_parts_partition_the_1797_digits() -> None:
    data = Digits()
    parts = [data.train_part, data.val_part, data.test_part]
    counts = [torch.bincount(part.labels).tolist() for part in parts]
    assert [sum(count) for count in counts] == [1079, 359, 359]
    assert [sum(column) for column in zip(*counts, strict=True)] == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pixels = torch.cat([part.fetch(torch.arange(len(part.labels))) for part in parts])
    stored = torch.from_numpy(load_digits().images).float()
    assert sorted((pixels * 16).flatten(1).tolist()) == sorted(stored.flatten(1).tolist())


def test_split_seed_moves_digits_and_run_seed_does_not() -> None:
    first, run, split = Digits(), Digits(seed=1), Digits(split_seed=1)
    assert torch.equal(first.train_part.labels, run.train_part.labels)
    assert not torch.equal(first.train_part.labels, split.train_part.labels)
    orders = [[i for batch in data.train_dataloader() for i in batch.index.tolist()] for data in (first, run)]
    assert orders[0] != orders[1]


def test_statistics_are_those_of_the_train_part() -> None:
    data = Digits()
    train = data.train_part.fetch(torch.arange(data.num_train)).double()
    assert data.preprocessing["mean"] == [train.mean().item()]
    assert abs(data.normalize.std[0] - train.std(correction=0).item()) < 1e-9
    assert data.preprocessing["input_size"] == [1, 8, 8]
    assert data.preprocessing["pixel_scale"] == 1.0
    assert data.labels == [str(i) for i in range(10)]


PARITY = [0, 1] * 5


def test_heads_ask_several_things_of_each_sample() -> None:
    plain, data = Digits(batch_size=50), Digits(batch_size=50, heads={"parity": PARITY, "digit": None})
    assert data.num_classes == {"digit": 10, "parity": 2}
    for before, batch in zip(plain.train_dataloader(), data.train_dataloader(), strict=True):
        assert torch.equal(batch.inputs, before.inputs), "order and split are the same"
        assert torch.equal(batch.targets, torch.stack([before.targets, before.targets % 2], dim=1))
    assert next(iter(data.test_dataloader())).targets.shape == (359, 2)


@pytest.mark.parametrize("labels", [[0, 1], [0, 2] * 5, [0.5] * 10, [-1, 0] * 5])
def test_a_head_gives_each_class_a_label(labels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"heads\.odd must give each of the 10 classes a label, counted from 0 up"):
        _ = Digits(heads={"odd": labels}).num_classes  # type: ignore[dict-item]


def test_only_some_digits_are_classes_of_their_own() -> None:
    some, everything = Digits(only=[7, 3]), Digits()
    assert some.labels == ["7", "3"]
    assert some.num_classes == 2
    counts = sum(len(part.labels) for part in (some.train_part, some.val_part, some.test_part))
    assert counts == 179 + 183  # as scikit-learn's description of the set counts its sevens and threes
    images = torch.cat([part.fetch(torch.arange(len(part.labels))) for part in (some.train_part, some.val_part)])
    labels = torch.cat([some.train_part.labels, some.val_part.labels])
    source = load_digits()
    known = {tuple(image.ravel()): int(label) for image, label in zip(source.images, source.target, strict=True)}
    found = [known[tuple((16 * image).flatten().tolist())] for image in images]
    assert found == [[7, 3][label] for label in labels.tolist()]
    assert everything.num_classes == 10


def test_a_limit_leaves_validation_and_test_as_they_are() -> None:
    few, everything = Digits(limit=50), Digits()
    assert few.num_train == 50
    for few_part, part in ((few.val_part, everything.val_part), (few.test_part, everything.test_part)):
        assert torch.equal(few_part.fetch(torch.arange(9)), part.fetch(torch.arange(9)))
        assert torch.equal(few_part.labels, part.labels)


@pytest.mark.parametrize("only", [[10], [-1], [3, 3]])
def test_only_names_digits(only: list[int]) -> None:
    with pytest.raises(ValueError, match="only names some of the digits 0 to 9, each once"):
        Digits(only=only)
