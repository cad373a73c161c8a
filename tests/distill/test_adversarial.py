import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.cli import main
from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.method import Step
from lightning_compress.core.schedule import Linear, OneShot
from lightning_compress.core.tap import _Tap
from lightning_compress.distill.adversarial import Adversarial, Health
from lightning_compress.distill.discriminator import Discriminator
from lightning_compress.distill.teacher import Teacher, fingerprint
from lightning_compress.run.config import CONF
from tests.contract import cases

ROW = "prune-quantize-distill-adversarial"


def net(width: int, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs)
    )


def a_step(outputs: Tensor, progress: float = 0.0, **more: Any) -> Step:
    inputs = torch.randn(len(outputs), 1, 6, 6, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(len(outputs)) % 3
    task_loss = outputs.sum()
    return Step(inputs, targets, outputs, task_loss, progress=progress, model=nn.Identity(), **more)


def judge(method: Adversarial) -> Discriminator:
    assert method.discriminator is not None
    return method.discriminator


@pytest.mark.parametrize("conditional", [False, True])
def test_the_term_is_the_weighted_loss_on_logits(conditional: bool) -> None:
    method = Adversarial(net(4), weight=Linear(first=0.2, last=0.6), conditional=conditional)
    step = a_step(torch.randn(5, 3, requires_grad=True), progress=0.5)
    term = method.loss(step)["adversarial"]
    assert len(list(judge(method).network.parameters())[-1]) == (4 if conditional else 1)
    targets = (step.targets,) if conditional else ()
    torch.testing.assert_close(term, 0.4 * judge(method).fooled(step.outputs, *targets))
    assert method.task_weight(0.5) == 1.0


def test_features_are_pooled_and_adapted_to_the_teachers_width() -> None:
    teacher = net(4)
    method = Adversarial(teacher, layer="1", weight=1.0)
    method.attach(nn.Identity(), None)
    maps, tokens = torch.randn(5, 6, 3, 3, requires_grad=True), torch.randn(5, 9, 6)
    step = a_step(torch.randn(5, 3), features={"1": maps})
    term = method.loss(step)["adversarial"]
    # A 1x1 convolution of the map, averaged afterwards, is the same.
    weight, bias = judge(method).adapter.parameters()
    scores = judge(method).network(nn.functional.conv2d(maps, weight[..., None, None], bias).mean((2, 3)))
    torch.testing.assert_close(term, nn.functional.softplus(-scores).mean())
    (seen,) = method._seen
    theirs = nn.Sequential(*list(teacher)[:2])(step.inputs)
    torch.testing.assert_close(seen[1], theirs.mean((2, 3)))
    assert not seen[0].requires_grad
    method._seen = []
    method.loss(a_step(torch.randn(5, 3), features={"1": tokens}))
    assert torch.equal(method._seen[0][0], tokens.mean(1))


def test_each_side_trains_only_itself() -> None:
    teacher, student = net(4), net(6)
    before = fingerprint(teacher)
    method = Adversarial(teacher, weight=1.0, steps=2)
    compressor = Compressor([method])
    compressor.attach(student, None)
    assert list(compressor.parameters()) == []  # no optimizer, DDP or user finds the discriminator
    assert compressor.param_groups() == []
    step = a_step(student(a_step(torch.zeros(6, 3)).inputs))
    torch.autograd.backward(compressor.loss(step)["adversarial"])
    slopes = [p.grad for p in student.parameters() if p.grad is not None]
    copies = [slope.clone() for slope in slopes]
    assert len(slopes) == 4
    state, first = fingerprint(student), judge(method).state()
    compressor.update(student)
    assert all(torch.equal(*pair) for pair in zip(slopes, copies, strict=True))
    assert (fingerprint(student), fingerprint(teacher)) == (state, before)
    assert all(p.grad is None for p in teacher.parameters())
    gathered = judge(method).state()["parts"][0][1]["state"][0]
    assert int(gathered["step"]) == 2
    assert cases.differences(first, judge(method).state())


def test_accumulated_batches_are_one_step_on_all_of_them() -> None:
    teacher, outputs = net(4), torch.randn(6, 3)
    found = []
    for parts in (1, 3):
        method = Adversarial(teacher)
        for part in outputs.chunk(parts):
            method._features = lambda step: (step.outputs, 2.0 * step.outputs)  # type: ignore[method-assign]
            method.loss(a_step(part))
        figures = method.update(teacher, 0.0)
        assert method.update(teacher, 0.0) == {}
        found.append((judge(method).state(), figures))
    for (weights, _), (others, _) in zip(found[0][0]["parts"], found[1][0]["parts"], strict=True):
        torch.testing.assert_close(weights, others)
    assert found[0][1] == pytest.approx(found[1][1])


def test_it_runs_in_full_precision_under_autocast() -> None:
    outputs = torch.randn(5, 3).bfloat16()
    method = Adversarial(net(4), weight=1.0, conditional=True)
    with torch.autocast("cpu", torch.bfloat16):
        term = method.loss(a_step(outputs.requires_grad_()))["adversarial"]
    assert term.dtype == torch.float32
    assert torch.equal(term, judge(method).fooled(outputs.float(), a_step(outputs).targets))
    method.update(nn.Identity(), 0.0)
    assert all(p.dtype == torch.float32 for p in judge(method).network.parameters())


def test_the_cache_serves_logits() -> None:
    given = torch.randn(9, 3)
    method = Adversarial(Teacher(net(4), cache=True, outputs=[given]))
    place: dict[str, Any] = {"view": torch.zeros(2, dtype=torch.int64), "index": torch.tensor([7, 1])}
    method.loss(a_step(torch.randn(2, 3), **place))
    assert torch.equal(method._seen[0][1], given[[7, 1]])


def fixed(health: Health, distance: float, *, dead: bool, steps: int = 60) -> dict[str, float]:
    """A student that does not move, `distance` from its teacher; the figures after some steps."""
    adam = partial(torch.optim.Adam, lr=0.0 if dead else 0.05)
    discriminator = Discriminator((2, 2), hidden=(16,), optimizer=adam, loss=nn_loss)
    if dead:
        for parameter in list(discriminator.network.parameters())[-2:]:
            parameter.data.zero_()
    found = {}
    for _ in range(steps):
        found = health.see(discriminator.learn(torch.randn(64, 2), torch.randn(64, 2) + distance))
    return found


def nn_loss(scores: Tensor, real: bool) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))


def test_a_discriminator_that_wins_is_not_silent() -> None:
    health = Health(patience=20)
    with pytest.warns(RuntimeWarning, match="over 20 steps the discriminator wins: .*learning rate.*weight") as seen:
        figures = fixed(health, 8.0, dead=False)
    assert len(seen) == 1
    assert figures["adversarial/discriminator_accuracy"] > 0.98
    assert figures["adversarial/discriminator_loss"] < 0.1


def test_a_discriminator_that_collapses_is_not_silent() -> None:
    health = Health(patience=20)
    with pytest.warns(
        RuntimeWarning, match="has collapsed: it is right in 50%.*2.* of the teacher's spread off"
    ) as seen:
        figures = fixed(health, 2.0, dead=True, steps=30)
    assert len(seen) == 1
    assert figures["adversarial/gap"] == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("dead", [True, False])
def test_guessing_is_right_where_the_student_is_like_the_teacher(dead: bool) -> None:
    figures = fixed(Health(patience=20), 0.0, dead=dead)  # a warning would be an error
    assert figures["adversarial/discriminator_accuracy"] == pytest.approx(0.5, abs=0.04)
    assert figures["adversarial/gap"] < 0.1


def test_before_its_patience_ends_nothing_is_said() -> None:
    figures = fixed(Health(patience=11), 8.0, dead=False, steps=10)
    assert figures["adversarial/gap"] == pytest.approx(8.0, abs=0.3)


def test_figures_are_means_and_the_gap_counts_spread_too() -> None:
    health = Health(patience=4)
    ours, theirs = torch.randn(50, 2, 3) * 2.0 + 1.0, torch.randn(50, 2, 3)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        moments = [a.mean(0), a.square().mean(0), b.mean(0), b.square().mean(0)]
        figures = health.see(torch.cat([torch.tensor([0.5, 1.0]), *moments]))
    a, b = ours[:2].flatten(0, 1), theirs[:2].flatten(0, 1)
    off = (a.mean(0) - b.mean(0)).square() + (a.std(0, correction=0) - b.std(0, correction=0)).square()
    assert figures["adversarial/gap"] == pytest.approx(
        float((off.sum() / b.var(0, correction=0).sum()).sqrt()), rel=1e-4
    )


def test_a_term_without_effect_is_an_error() -> None:
    student = nn.Linear(2, 3)
    for outputs, why in (
        (torch.randn(5, 3), "the term 'adversarial' carries no gradient: are"),
        (torch.zeros(5, 3, requires_grad=True), "is 1 but has no gradient in the student"),
    ):
        method = Adversarial(net(4), loss=lambda scores, real: 0.0 * scores.sum() + 1.0)
        compressor = Compressor([method])
        compressor.loss(a_step(outputs))
        with pytest.raises(NoEffectError, match=f"Adversarial had no effect by step 1: .*{why}"):
            compressor.update(student)


def test_its_effect_is_looked_for_once_it_counts() -> None:
    method = Adversarial(net(4), weight=OneShot(last=0.5, at=0.5))
    method.loss(a_step(torch.randn(5, 3, requires_grad=True)))
    assert not method.settled(0.4)
    method.loss(a_step(torch.randn(5, 3, requires_grad=True), progress=0.5))
    assert method.settled(0.5)
    assert method.missing_effect(nn.Identity(), 0.5) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight is not negative.*got -1 to -1"),
        ({"steps": 0}, "steps=0"),
        ({"doubt": 0.5}, r"doubt lies in \[0, 0.5\).*doubt=0.5"),
        ({"teacher_layer": "1"}, "teacher_layer='1' needs layer"),
        ({"loss": "least_square"}, "did you mean 'least_squares'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adversarial(net(4), **options)


def test_a_cache_keeps_no_features() -> None:
    with pytest.raises(ValueError, match=r"write teacher\.cache=false"):
        Adversarial(Teacher(net(4), cache=True), layer="1")


def test_bad_features() -> None:
    with pytest.raises(ValueError, match=r"same shape, got \(5, 7\) and \(5, 3\)"):
        Adversarial(net(4, 7)).loss(a_step(torch.randn(5, 3)))
    with pytest.raises(ValueError, match="no module 'conv' to tap"):
        Adversarial(net(4), layer="0", teacher_layer="conv").attach(nn.Identity(), None)
    method = Adversarial(net(4), layer="0")
    method.attach(nn.Identity(), None)
    with pytest.raises(ValueError, match=r"expected '0' to put out .*got \[7\]; choose another layer"):
        method.loss(a_step(torch.randn(5, 3), features={"0": torch.ones(7)}))
    with pytest.raises(ValueError, match="the model has several heads; write layer=NAME"):
        Adversarial(net(4)).loss(replace(a_step(torch.randn(5, 3)), outputs={"a": torch.randn(5, 3)}))
    shared = net(4)
    with pytest.raises(ValueError, match="share parameters"):
        Adversarial(shared).attach(shared, None)


def test_a_resumed_run_goes_on_bit_by_bit_and_leaves_nothing_in_the_model(tmp_path: Path) -> None:
    whole = cases.fit(cases.module(cases.CASES[ROW]), cases.trainer(tmp_path / "whole"))
    started = cases.checkpoint(tmp_path / "whole", epoch=1)
    cases.fit(cases.module(cases.CASES[ROW], seed=5), cases.trainer(tmp_path / "resumed"), started)
    want, found = (cases.load(cases.checkpoint(tmp_path / name)) for name in ("whole", "resumed"))
    assert cases.differences(want, found) == []
    kept = want["state_dict"]["compressor.methods.3._extra_state"]
    assert kept["health"]["count"] == cases.EPOCHS * cases.BATCHES
    assert len(kept["discriminator"]["parts"]) == 2
    row = whole.epochs[-1]
    assert 0.0 <= row["train/adversarial/discriminator_accuracy"] <= 1.0
    assert {"train/adversarial", "train/adversarial/discriminator_loss", "train/adversarial/gap"} <= row.keys()
    compact = whole.finalize()
    assert compact.stored.keys() == cases.finalized("prune+quantize").stored.keys()
    hooks = [hook for module in compact.model.modules() for hook in module._forward_hooks.values()]
    assert not any(isinstance(hook, _Tap) for hook in hooks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["logits", "conditional", "features"])
def test_each_preset_trains(name: str, tmp_path: Path) -> None:
    settings = ["model.width=0.25", "epochs=1", "measure.latency=false", "wandb.mode=disabled", "distill=kl"]
    settings += ["model@teacher.model=small_conv", f"teacher.folder={tmp_path}", f"adversarial={name}"]
    settings += ["methods.adversarial.layer=relu3"] if name == "features" else []
    assert main(["train", *settings, "+trainer.limit_train_batches=3", "--out", str(tmp_path / "run")]) == 0
    (row,) = json.loads((tmp_path / "run/result.json").read_text())["history"]
    assert row["train/adversarial"] > 0
    assert row["train/adversarial/discriminator_loss"] > 0


@pytest.mark.parametrize("path", sorted((CONF / "adversarial").glob("[!n]*.yaml")), ids=lambda path: str(path.stem))
def test_a_preset_says_where_it_comes_from(path: Path) -> None:
    first, second, *_ = path.read_text().splitlines()
    assert first == "# @package methods.adversarial"
    assert second.startswith("# ")
    assert "arXiv" in second
