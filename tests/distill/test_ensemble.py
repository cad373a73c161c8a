import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.distill.ensemble import Ensemble
from lightning_compress.distill.method import Distill
from lightning_compress.distill.teacher import Teacher, fingerprint


class Says(nn.Module):
    """A network that puts out the same logits whatever it is shown."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([logits]))

    def forward(self, _inputs: Tensor) -> Tensor:
        return self.logits


X = torch.zeros(1, 1)


def test_probabilities_by_hand() -> None:
    members = [Says(math.log(3.0), 0.0), Says(5.0, 5.0)]  # 3/4 and 1/4; 1/2 and 1/2
    even = Ensemble(members)(X).softmax(1)
    torch.testing.assert_close(even, torch.tensor([[0.625, 0.375]]))
    uneven = Ensemble(members, [1, 3])(X).softmax(1)
    torch.testing.assert_close(uneven, torch.tensor([[0.5625, 0.4375]]))
    torch.testing.assert_close(Ensemble(members, [1, 3])(X).logsumexp(1), torch.zeros(1))  # they are the log of it


def test_logits_by_hand() -> None:
    members = [Says(4.0, 0.0), Says(0.0, 8.0)]
    assert Ensemble(members, [3, 1], mean="logits")(X).tolist() == [[3.0, 2.0]]


def test_probabilities_are_the_mean_of_each_ones_for_any_batch() -> None:
    members = [nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), nn.Linear(6, 4)]
    x = 30 * torch.randn(7, 6)  # some probabilities are 0 in float32
    expected = sum(s * member(x).softmax(1) for s, member in zip((0.5, 0.3, 0.2), members, strict=True))
    assert isinstance(expected, Tensor)
    found = Ensemble(members, [5, 3, 2])(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found.softmax(1), expected)


def test_half_precision_is_averaged_in_float32() -> None:
    ensemble = Ensemble([nn.Linear(6, 4), nn.Linear(6, 4)]).bfloat16()
    assert ensemble(torch.randn(2, 6).bfloat16()).dtype == torch.float32


def test_it_is_a_teacher_known_by_members_shares_and_mean() -> None:
    members = [nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.9)), nn.Linear(6, 4)]
    ensemble = Ensemble(members, [1, 2])
    teacher = Teacher(ensemble)
    x = torch.randn(3, 6)
    assert torch.equal(teacher(x), teacher(x))
    assert not any(parameter.requires_grad for parameter in members[0].parameters())
    others = [Ensemble(members, [1, 2], mean="logits"), Ensemble(members, [2, 1]), Ensemble(members[::-1], [1, 2])]
    assert len({teacher.hash, *map(fingerprint, others)}) == 4
    assert teacher.hash == fingerprint(Ensemble(members, [2, 4])), "a share is what is left of it by the sum"
    assert Distill(ensemble).teacher.hash == teacher.hash


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "a share above 0 for each of its 0 members"),
        (([X, X], [1.0]), {}, r"each of its 2 members; got \[1.0\]"),
        (([X], [0.0]), {}, r"got \[0.0\]"),
        (([X],), {"mean": "median"}, "mean must be one of probabilities, logits; got 'median'"),
    ],
)
def test_bad_options(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ensemble(*arguments, **options)


def test_members_of_other_classes() -> None:
    with pytest.raises(ValueError, match=r"must put out one shape, got \[\(1, 2\), \(1, 3\)\]"):
        Ensemble([Says(1.0, 2.0), Says(1.0, 2.0, 3.0)])(X)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_positions_are_averaged_each_by_itself(mean: str) -> None:
    members, x = [nn.Conv1d(2, 4, 1), nn.Conv1d(2, 4, 1)], torch.randn(3, 2, 5)
    ensemble = Ensemble(members, [1, 3], mean=mean)
    torch.testing.assert_close(ensemble(x)[:, :, 1:2], ensemble(x[:, :, 1:2]))
    if mean == "probabilities":
        expected = 0.25 * members[0](x).softmax(1) + 0.75 * members[1](x).softmax(1)
        torch.testing.assert_close(ensemble(x).softmax(1), expected)
