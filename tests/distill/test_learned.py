from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softplus
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.distill.contrast import CRD
from lightning_compress.distill.learned import VID, FactorTransfer
from lightning_compress.distill.review import Review


@pytest.fixture(autouse=True)
def _values_only() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 3)])
def test_vid_is_the_gaussians_likelihood(shape: tuple[int, ...]) -> None:
    loss = VID(shape, (6, 5, *shape[2:]))
    student, teacher = torch.randn(shape), torch.randn(6, 5, *shape[2:])
    torch.nn.init.normal_(loss.spread)
    variance = (softplus(loss.spread.detach().numpy()) + 1e-5) * np.ones(teacher.shape)
    density = norm(loss.mean(student).detach().numpy(), np.sqrt(variance)).logpdf(teacher.numpy())
    expected = -density.mean() - 0.5 * np.log(2 * np.pi)
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_vid_begins_at_the_variance_it_is_given() -> None:
    loss = VID((6, 3), (6, 5), variance=2.0)
    assert loss.spread.shape == (1, 5)
    torch.testing.assert_close(F.softplus(loss.spread) + 1e-5, torch.full((1, 5), 2.0))


def test_factors_are_compared_with_norm_one_and_the_paraphraser_learns_beforehand() -> None:
    loss = FactorTransfer((6, 3, 8, 8), (6, 4, 4, 4), passes=20, lr=1e-2)
    mix = torch.randn(4, 2)
    data = [torch.einsum("cf,bfxy->bcxy", mix, torch.randn(6, 2, 4, 4)) for _ in range(3)]  # two factors make four

    def lost() -> float:
        return float(sum(F.mse_loss(loss.back(loss.paraphraser(maps)), maps) for maps in data))

    def features() -> Iterator[Tensor]:
        return iter(data)

    before = lost()
    loss.prepare(features)
    assert lost() < 0.8 * before
    assert {name.split(".")[0] for name, p in loss.named_parameters() if p.requires_grad} == {"translator"}
    assert all(p.grad is None for p in loss.parameters())
    student = torch.randn(6, 3, 8, 8)
    one, other = loss.translator(F.avg_pool2d(student, 2)), loss.paraphraser(data[0])
    assert one.shape == other.shape == (6, 2, 4, 4)
    rows = [part.detach().flatten(1).numpy() for part in (one, other)]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in rows]
    assert float(loss.eval()(student, data[0])) != 0.0
    found = float(loss.train()(student, data[0]))
    assert found == pytest.approx(np.abs(unit[0] - unit[1]).mean(), rel=1e-4)


def a_bank(negatives: int = 6) -> tuple[CRD, Tensor, Tensor, Tensor]:
    loss = CRD((9, 3), (9, 5), width=4, negatives=negatives)
    return loss, torch.randn(9, 3), torch.randn(9, 5), torch.tensor([0, 1, 2] * 3)


def test_contrast_by_the_authors_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, student, teacher, targets = a_bank()
    index = torch.tensor([20, 3, 7, 4, 1, 0, 11, 13, 5])
    loss(student, teacher, index=index, targets=targets)
    drawn = index[torch.randint(0, 9, (9, 6))]
    monkeypatch.setattr(loss, "_draw", lambda _: drawn)
    banks, scale = loss._bank.clone(), loss._scale
    assert scale is not None
    new = torch.randn(9, 3)
    found = float(loss(new, teacher, index=index, targets=targets))
    rows = [F.normalize(embed(part)).detach() for embed, part in zip(loss.embed, (new, teacher), strict=True)]
    samples, expected = 1000, 0.0  # any number of samples gives the same
    for row, bank, mean in zip(rows, banks.flip(0), scale.exp(), strict=True):
        z, noise = float(mean) * samples, 6 / samples
        for i in range(9):
            odds = [float(torch.exp(row[i] @ bank[j] / 0.07)) / z for j in (index[i], *drawn[i])]
            expected -= np.log(odds[0] / (odds[0] + noise)) / 9
            expected -= sum(np.log(noise / (odd + noise)) for odd in odds[1:]) / 9
    assert found == pytest.approx(expected, rel=1e-4)
    moved = F.normalize(0.5 * banks[0][index] + 0.5 * rows[0], dim=1)
    torch.testing.assert_close(loss._bank[0][index], moved)


def test_the_scale_is_the_mean_of_the_first_step() -> None:
    loss, student, teacher, targets = a_bank(negatives=4000)
    index = torch.arange(9)
    loss(student, teacher, index=index, targets=targets)
    rows = [F.normalize(embed(part)).detach() for embed, part in zip(loss.embed, (student, teacher), strict=True)]
    other = targets[:, None] != targets[None]
    for mine, theirs, found in zip(rows, reversed(rows), loss._scale, strict=True):  # type: ignore[arg-type]
        expected = (mine @ theirs.T / 0.07).exp()[other].mean()
        assert float(found.exp()) == pytest.approx(float(expected), rel=0.1)


def test_negatives_are_of_every_other_class_and_seen() -> None:
    loss, student, teacher, targets = a_bank(negatives=400)
    index = torch.tensor([20, 3, 7, 4, 1, 0, 11, 13, 5])
    loss(student, teacher, index=index, targets=targets)
    drawn = loss._draw(torch.tensor([0, 1, 2]))
    for label, row in enumerate(drawn):
        assert set(row.tolist()) == set(index[targets != label].tolist())
    with pytest.raises(ValueError, match="no sample of another class so far: shuffle"):
        a_bank()[0](student, teacher, index=index, targets=torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="one class for each sample"):
        loss(student, teacher, index=index, targets=torch.rand(9, 3))


def test_a_bank_goes_through_a_checkpoint() -> None:
    loss, student, teacher, targets = a_bank()
    index = torch.arange(9)
    loss(student, teacher, index=index, targets=targets)
    other = CRD((9, 3), (9, 5), width=4, negatives=6)
    other.load_state_dict(loss.state_dict())
    values = []
    for each in (loss, other):
        torch.manual_seed(4)
        values.append(float(each(student, teacher, index=index, targets=targets)))
    assert values[0] == values[1]


def test_review_by_the_authors_steps() -> None:
    student = [torch.randn(6, 3, 8, 8), torch.randn(6, 5, 4, 4), torch.randn(6, 7, 1, 1)]
    teacher = [torch.randn(6, 4, 8, 8), torch.randn(6, 6, 2, 2), torch.randn(6, 8, 1, 1)]
    loss: Any = Review([maps.shape for maps in student], [maps.shape for maps in teacher])
    first, second, third = loss.fusions
    x = third.bring(student[2])
    found = [third.face(x)]
    for fusion, maps, size in ((second, student[1], 2), (first, student[0], 8)):
        deeper, x = x, fusion.bring(maps)
        deeper = deeper.repeat_interleave(x.shape[2] // deeper.shape[2], 2)
        deeper = deeper.repeat_interleave(x.shape[3] // deeper.shape[3], 3)
        weights = fusion.weigh(torch.cat([x, deeper], 1))
        x = x * weights[:, [0]] + deeper * weights[:, [1]]
        x = x[:, :, :: x.shape[2] // size, :: x.shape[3] // size]
        found.append(fusion.face(x))
    expected = 0.0
    for one, other in zip(found, reversed(teacher), strict=True):
        parts, weights = [(one - other).square().mean()], [1.0]
        for fields in (4, 2, 1):
            if fields < one.shape[2]:
                size = one.shape[2] // fields
                small = [
                    maps.unflatten(3, (fields, size)).unflatten(2, (fields, size)).mean((3, 5)) for maps in (one, other)
                ]
                parts.append((small[0] - small[1]).square().mean())
                weights.append(weights[-1] / 2)
        expected += float(sum(w * p for w, p in zip(weights, parts, strict=True))) / sum(weights)
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-4)
