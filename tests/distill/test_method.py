from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.method import Step
from lightning_compress.core.schedule import Linear, OneShot
from lightning_compress.distill.logits import dkd, kl
from lightning_compress.distill.method import Distill
from lightning_compress.distill.teacher import Teacher, fingerprint
from lightning_compress.models.shared_trunk import SharedTrunk


def teacher(outputs: int = 3) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, outputs))


def student() -> nn.Module:
    torch.manual_seed(8)
    return nn.Linear(4, 3)


def a_step(outputs: Tensor, progress: float = 0.0, **more: Any) -> Step:
    inputs = torch.randn(len(outputs), 4, generator=torch.Generator().manual_seed(1))
    return Step(
        inputs=inputs,
        targets=torch.zeros(len(outputs), dtype=torch.int64),
        outputs=outputs,
        task_loss=outputs.sum(),
        progress=progress,
        model=nn.Identity(),
        **more,
    )


def test_the_term_is_the_weighted_loss_with_schedules() -> None:
    method = Distill(teacher(), temperature=Linear(first=8.0, last=2.0), weight=Linear(first=0.2, last=0.6))
    outputs = torch.randn(5, 3, requires_grad=True)
    step = a_step(outputs, progress=0.5)
    expected = 0.4 * kl(outputs, teacher().eval()(step.inputs), 5.0)
    torch.testing.assert_close(method.loss(step), {"distill": expected})
    assert method.task_weight(0.5) == pytest.approx(0.6)
    assert [method.task_weight(p) for p in (0.0, 1.0)] == pytest.approx([0.8, 0.4])


def test_a_loss_by_path_or_function() -> None:
    def distance(a: Tensor, b: Tensor, temperature: float) -> Tensor:
        return (a - b).square().mean() / temperature

    outputs = torch.randn(5, 3, requires_grad=True)
    term = Distill(teacher(), weight=1.0, temperature=2.0, loss=distance).loss(a_step(outputs))["distill"]
    torch.testing.assert_close(term, F.mse_loss(outputs, teacher().eval()(a_step(outputs).inputs)) / 2)
    with pytest.raises(ValueError, match=r"no function 'kll'.*did you mean 'kl'"):
        Distill(teacher(), loss="kll")


def test_the_seed_formula() -> None:
    # alpha * CE(y, p_s) + (1 - alpha) * CE(p_t, p_s), written out with probabilities.
    alpha, outputs = 0.3, torch.randn(5, 3)
    method = Distill(teacher(), weight=1.0 - alpha, loss="soft_cross_entropy", temperature=1.0)
    step = a_step(outputs)
    p_s, p_t = outputs.softmax(1).log(), teacher().eval()(step.inputs).softmax(1)
    labels = -p_s[torch.arange(5), step.targets].mean()
    expected = alpha * labels + (1 - alpha) * -(p_t * p_s).sum(1).mean()
    found = method.task_weight(0.5) * F.cross_entropy(outputs, step.targets) + method.loss(step)["distill"]
    torch.testing.assert_close(found, expected)


def test_a_loss_is_given_what_it_asks_for_and_its_options() -> None:
    outputs = torch.randn(5, 3)
    step = a_step(outputs)
    method = Distill(teacher(), weight=2.0, labels=1.0, loss="dkd", temperature=3.0, options={"beta": 5.0})
    expected = 2.0 * dkd(outputs, teacher().eval()(step.inputs), 3.0, step.targets, beta=5.0)
    torch.testing.assert_close(method.loss(step)["distill"], expected)
    assert method.task_weight(0.5) == 1.0


def test_the_teacher_is_nobodys_state_and_gets_no_gradient() -> None:
    model = teacher()
    before = fingerprint(model)
    method, net = Distill(model), student()
    compressor = Compressor([method])
    assert compressor.attach(net, None) is net
    assert [key for key in compressor.state_dict() if "_extra_state" not in key] == []
    assert list(compressor.parameters()) == []
    assert compressor.param_groups() == []
    compressor.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        step = a_step(net(torch.randn(6, 4)))
        optimizer.zero_grad()
        torch.autograd.backward(compressor.loss(step)["distill"])
        optimizer.step()
        compressor.update(net)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert fingerprint(model) == before == method.teacher.hash


def test_training_on_it_reaches_the_teacher() -> None:
    model, net = nn.Linear(4, 3), student()
    method = Distill(model, weight=1.0, temperature=2.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    losses = []
    for _ in range(200):
        x = a_step(torch.zeros(64, 3)).inputs
        term = method.loss(a_step(net(x)))["distill"]
        optimizer.zero_grad()
        torch.autograd.backward(term)
        optimizer.step()
        losses.append(float(term.detach()))
    assert losses[-1] < 1e-3 * losses[0]


def test_cache_goes_to_the_teacher() -> None:
    method = Distill(Teacher(teacher(), cache=True))
    outputs = torch.randn(2, 3)
    index = torch.tensor([0, 1])
    method.loss(a_step(outputs, view=torch.tensor([0, 0]), index=index))
    with pytest.raises(ValueError, match="turn the augmentation off, or write cache=false"):
        method.loss(a_step(outputs, view=torch.tensor([0, -1]), index=index))


def test_classes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"same shape, got \(5, 7\) and \(5, 3\)"):
        Distill(teacher(7)).loss(a_step(torch.randn(5, 3)))


def test_a_student_is_not_its_own_teacher() -> None:
    net = student()
    with pytest.raises(ValueError, match="share parameters; give the teacher a copy"):
        Distill(net).attach(nn.Sequential(net), None)


def run(method: Distill, outputs: Tensor) -> None:
    compressor = Compressor([method])
    compressor.loss(a_step(outputs))
    compressor.update(nn.Identity())


def test_detached_outputs_are_an_error() -> None:
    with pytest.raises(
        NoEffectError, match="the term 'distill' carries no gradient: are the student's outputs detached"
    ):
        run(Distill(teacher()), torch.randn(5, 3))


def test_a_loss_of_zero_is_an_error() -> None:
    outputs = teacher().eval()(a_step(torch.zeros(5, 3)).inputs)
    with pytest.raises(NoEffectError, match="the term 'distill' is exactly zero: is the teacher the student itself"):
        run(Distill(teacher()), outputs)


def test_a_method_that_works_raises_nothing() -> None:
    run(Distill(teacher()), torch.randn(5, 3, requires_grad=True))


def test_no_alarm_while_the_weight_is_zero() -> None:
    method = Distill(teacher(), weight=OneShot(last=0.5, at=0.5))
    assert not method.settled(0.9)  # nothing computed yet
    outputs = torch.randn(5, 3, requires_grad=True)
    found = []
    for progress in (0.0, 0.49, 0.5):
        method.loss(a_step(outputs, progress))
        found.append(method.settled(progress))
    assert found == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"temperature": Linear(first=4.0, last=-1.0)}, "temperature must be positive, got -1"),
        ({"weight": 1.5}, r"a share in \[0, 1\], got 1.5; with labels=1 it may be any number"),
        ({"weight": -1.5, "labels": 1}, "must not be negative"),
        ({"labels": Linear(first=1.0, last=-1.0)}, "must not be negative"),
        ({"loss": "dkd", "options": {"gamma": 1.0}}, "no option 'gamma' of 'dkd': it has alpha, beta"),
        ({"weight": Linear(first=-0.5, last=1.0)}, r"a share in \[0, 1\], got -0.5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distill(teacher(), **options)


def test_given_outputs_go_to_the_teacher() -> None:
    given, outputs = torch.randn(9, 3), torch.randn(2, 3)
    method = Distill(Teacher(teacher(), cache=True, outputs=[given]), weight=1.0, temperature=2.0)
    term = method.loss(a_step(outputs, view=torch.tensor([0, 0]), index=torch.tensor([7, 1])))["distill"]
    torch.testing.assert_close(term, kl(outputs, given[[7, 1]], 2.0))


def test_each_head_learns_from_the_one_of_its_name() -> None:
    def heads(*names: str) -> nn.Module:
        torch.manual_seed(7)
        return SharedTrunk(nn.Linear(4, 6), {name: nn.Linear(6, 3) for name in names})

    outputs = {name: torch.randn(5, 3, requires_grad=True) for name in ("a", "b")}
    targets = torch.tensor([[0, 1], [2, 0], [1, 1], [0, 2], [2, 2]])
    seen: dict[str, Any] = {"outputs": outputs, "targets": targets, "index": torch.arange(5), "view": torch.zeros(5)}
    step = replace(a_step(torch.zeros(5, 3)), **seen)
    soft = heads("b", "a")(step.inputs)
    expected = 0.3 * (kl(outputs["a"], soft["a"], 4.0) + kl(outputs["b"], soft["b"], 4.0))
    torch.testing.assert_close(Distill(heads("b", "a"), weight=0.3).loss(step), {"distill": expected})
    labelled = [dkd(outputs[name], soft[name], 4.0, targets[:, column]) for column, name in enumerate("ab")]
    found = Distill(heads("b", "a"), loss="dkd", labels=1.0, weight=1.0).loss(step)["distill"]
    torch.testing.assert_close(found, labelled[0] + labelled[1])
    for teacher in (heads("a", "c"), nn.Linear(4, 3)):
        with pytest.raises(ValueError, match="must put out the same shape"):
            Distill(teacher).loss(step)
    with pytest.raises(ValueError, match="cache=true keeps one output, and the teacher has several"):
        Distill(Teacher(heads("a", "b"), cache=True)).loss(step)
