"""Hints inside `Distill`: every loss on features on real networks, from the names of modules to the gradient."""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import lookup
from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.schedule import Linear, OneShot
from lightning_compress.distill import contrast, features, learned, relations, review
from lightning_compress.distill.adapters import negative_mean
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.distill.teacher import Teacher
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize

HOMES = (features, relations, learned, contrast, review)
EXAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def net(first: int, second: int, *, inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(first, second, 3, padding=1, stride=2),
        nn.BatchNorm2d(second),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * second, 5),
    )


#: Loss to (the student's modules, the teacher's): maps of other widths, and of other sizes where that is allowed.
LAYERS: dict[str, tuple[Any, Any]] = {
    **dict.fromkeys(("hint", "attention", "VID", "FactorTransfer", "neuron_selectivity"), (["2", "5"], ["2", "2"])),
    **dict.fromkeys(("boundary", "margin", "hint_normalized"), ("4", "4")),
    **dict.fromkeys(("similarity", "distance", "angle", "pkt", "correlation", "CRD"), ("7", "5")),
    **dict.fromkeys(("flow", "Review"), (["2", "5"], ["2", "5"])),
}
OPTIONS = {"CRD": {"negatives": 7}}


def offered() -> list[str]:
    return [name for home in HOMES for name, found in vars(home).items() if lookup._is_offered(name, found, home)]


#: Of texts: test_text_hints.py.
TEXTS = {"cosine", "patience", "attention_scores"}


def test_every_loss_is_in_the_table() -> None:
    assert set(offered()) == set(LAYERS) | TEXTS


def batch(size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(size, 1, 8, 8), torch.arange(size) % 5, torch.arange(size)


def a_hint(loss: str, **options: Any) -> Hint:
    student, teacher = LAYERS[loss]
    return Hint(student, teacher, loss=loss, options=OPTIONS.get(loss), **options)


def attached(*hints: Hint, teacher: nn.Module | None = None, student: nn.Module | None = None, **options: Any) -> Any:
    options.setdefault("loss", None)
    named = {f"h{place}": hint for place, hint in enumerate(hints)}
    compressor = Compressor([Distill(teacher or net(6, 9), hints=named, **options)])
    model = compressor.attach(student or net(4, 7), EXAMPLE)
    return model, compressor, compressor.methods[0]


def terms(model: nn.Module, compressor: Compressor, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    outputs = model(given[0])
    return compressor.loss(compressor.step(given, outputs, outputs.sum(), model))


@pytest.mark.parametrize("loss", LAYERS)
def test_each_reaches_the_student_and_training_makes_it_small(loss: str) -> None:
    model, compressor, method = attached(a_hint(loss, weight=2.0))
    given = batch()
    compressor.prepare(model, [given])
    teacher = copy.deepcopy(method.teacher.model.state_dict())
    own = method.param_groups()[0]["params"] if method.param_groups() else []
    optimizer = torch.optim.Adam([*model.parameters(), *own], lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        (term,) = terms(model, compressor, given).values()
        assert term.shape == ()
        torch.autograd.backward(term)
        optimizer.step()
        compressor.update(model)
        losses.append(float(term.detach()))
    assert losses[-1] < 0.97 * losses[0]
    assert all(model.get_submodule(name).weight.grad.any() for name in ("0", "3"))
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in own)
    assert all(parameter.grad is None for parameter in method.teacher.model.parameters())
    assert all(torch.equal(value, teacher[name]) for name, value in method.teacher.model.state_dict().items())


@pytest.mark.parametrize("loss", LAYERS)
def test_each_runs_under_bf16(loss: str) -> None:
    model, compressor, _ = attached(a_hint(loss))
    given = batch()
    compressor.prepare(model, [given])
    with torch.autocast("cpu", torch.bfloat16):
        (term,) = terms(model, compressor, given).values()
    assert term.dtype == torch.float32
    torch.autograd.backward(term)
    assert term.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_terms_have_names_and_weights_of_their_own() -> None:
    ramp = Linear(first=0.0, last=4.0)
    hints = (Hint("5", loss="attention", weight=ramp), Hint(["2", "5"], loss="similarity", weight=3.0))
    model, compressor, method = attached(*hints, loss="kl", weight=0.25)
    assert method.taps == ("5", "2")
    given = batch()
    compressor.horizon = 2
    compressor.steps = 1
    found = terms(model, compressor, given)
    assert set(found) == {"distill", "hint/h0", "hint/h1"}
    outputs, seen = model(given[0]), compressor.features()
    theirs = method.teacher.features
    torch.testing.assert_close(found["hint/h0"], 2.0 * features.attention(seen["5"], theirs["5"]))
    both = sum(features.similarity(seen[name], theirs[name]) for name in ("2", "5"))
    torch.testing.assert_close(found["hint/h1"], 3.0 * both)
    assert method.task_weight(0.5) == 0.75
    assert outputs.shape == (12, 5)


def test_without_a_loss_on_outputs_the_labels_keep_their_weight() -> None:
    _, _, method = attached(Hint("5", loss="pkt"))
    assert method.task_weight(0.3) == 1.0


def test_names_survive_parametrizations_and_adapters_are_state_but_no_part_of_the_model() -> None:
    distill = Distill(net(6, 9), hints={"fit": Hint(["2", "5"], loss="hint")}, loss=None)
    compressor = Compressor([Prune(0.5, pattern="channel"), Quantize(8, 8), distill])
    model = compressor.attach(net(4, 7), EXAMPLE)
    fit: Any = distill.hints[0]
    widths = [part.adapters[0].weight.shape[:2] for part in fit.parts]
    assert widths == [(6, 4), (9, 7)]
    adapters = [key for key in compressor.state_dict() if "adapters" in key]
    assert len(adapters) == 4
    assert not any("adapter" in key for key in model.state_dict())
    assert len(distill.param_groups()[0]["params"]) == 4


def test_the_margin_is_that_of_the_teachers_batch_norm() -> None:
    teacher: Any = net(6, 9)
    torch.nn.init.normal_(teacher[4].weight)
    torch.nn.init.normal_(teacher[4].bias)
    _, compressor, method = attached(a_hint("margin"), teacher=teacher)
    expected = negative_mean(teacher[4].bias, teacher[4].weight)
    torch.testing.assert_close(method.hints[0].parts[0].margin, expected)
    assert not any("margin" in key for key in compressor.state_dict())
    with pytest.raises(ValueError, match=r"'margin' cannot compare 4 .* with 5 .* batch norm with a scale, got ReLU"):
        attached(Hint("4", "5", loss="margin"), teacher=teacher)


def scaled(student: Tensor, teacher: Tensor, targets: Tensor, factor: float = 1.0) -> Tensor:
    return factor * (student.mean((1, 2, 3)) - teacher.mean((1, 2, 3)) - targets).square().mean()


def test_a_function_of_yours_with_options() -> None:
    model, compressor, method = attached(Hint("5", loss=scaled, options={"factor": 3.0}), student=net(6, 9))
    given = batch()
    found = terms(model, compressor, given)["hint/h0"]
    expected = scaled(compressor.features()["5"], method.teacher.features["5"], given[1], 3.0)
    torch.testing.assert_close(found, expected)  # widths are alike: no adapter
    with pytest.raises(ValueError, match=r"no option 'fctor' of 'scaled': did you mean 'factor'"):
        attached(Hint("5", loss=scaled, options={"fctor": 3.0}))


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        (lambda: Hint("55", loss="hint"), "no module '55' to tap; did you mean '5'"),
        (lambda: Hint("5", "11", loss="hint"), "no module '11' to tap"),
        (
            lambda: Hint("5", "7", loss="hint"),
            r"cannot compare 5 of the student with 7 .*\[2, 7, 4, 4\], \[2, 36\]: exp",
        ),
        (lambda: Hint("7", loss="attention"), "'attention' cannot compare 7 of the student with 7"),
        (lambda: Hint("5", loss="flow"), "flow goes from one layer to the next: name two modules"),
        (lambda: Hint(["2", "5"], "5", loss="hint"), "as many modules of the teacher as of the student.*got 1 and 2"),
        (lambda: Hint("5", loss="atention"), "no function 'atention'.*did you mean 'attention'"),
        (lambda: Hint("5", loss="hint", weight=-1.0), "must not be negative"),
        (
            lambda: Hint("5", loss="VID", options={"varience": 1}),
            "no option 'varience' of 'VID': did you mean 'variance'",
        ),
        (lambda: Hint("7", loss="FactorTransfer"), "factors are of maps"),
        (lambda: Hint(["5", "7"], loss="Review"), "review takes maps"),
    ],
)
def test_wrong_hints_are_known_before_training(hint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attached(hint())


def test_features_that_are_changed_in_place_are_refused() -> None:
    with pytest.raises(ValueError, match="what '4' puts out is changed in place by a module after it"):
        attached(Hint("4", loss="boundary"), student=net(4, 7, inplace=True))
    attached(Hint("5", loss="attention"), student=net(4, 7, inplace=True))


def test_the_cache_and_nothing_to_learn_are_refused() -> None:
    hints = {"a": Hint("5", loss="attention")}
    with pytest.raises(ValueError, match=r"hints need its features; write teacher\.cache=false"):
        Distill(Teacher(net(6, 9), cache=True), hints=hints)
    with pytest.raises(ValueError, match="leaves nothing to learn"):
        Distill(net(6, 9), loss=None)
    with pytest.raises(ValueError, match=r"a hint of Distill is an object.*got 'attention'"):
        Distill(net(6, 9), hints={"a": "attention"})  # type: ignore[dict-item]


class Dead(nn.Module):
    """Puts out zeros."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * x


def test_a_hint_without_effect_is_named() -> None:
    student = net(4, 7)
    student[5] = Dead()
    model, compressor, _ = attached(Hint("5", loss="pkt"), Hint("2", loss="pkt"), student=student)
    terms(model, compressor, batch())
    with pytest.raises(NoEffectError, match=r"step 1: the term 'hint/h0' is .* but has no gradient in the student"):
        compressor.update(model)
    model, compressor, _ = attached(Hint("5", loss="attention"), teacher=net(4, 7))
    compressor.methods[0].teacher.model.load_state_dict(model.state_dict())
    terms(model.eval().to(memory_format=torch.channels_last), compressor, batch())
    with pytest.raises(NoEffectError, match="the term 'hint/h0' is exactly zero"):
        compressor.update(model)


def test_a_late_hint_is_waited_for() -> None:
    model, compressor, method = attached(Hint("5", loss="pkt", weight=OneShot(last=1.0, at=0.5)), loss="kl")
    compressor.horizon = 2
    found = []
    for _ in range(2):
        terms(model, compressor, batch())
        found.append(method.settled(compressor.progress))
        compressor.update(model)
    assert found == [False, True]


def test_every_loss_names_its_paper() -> None:
    for name in offered():
        found = lookup.function(name, *HOMES)
        assert "arXiv" in str(inspect.getdoc(found)) or name == "flow"
