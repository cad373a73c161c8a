import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Method
from lightning_compress.core.schedule import OneShot
from lightning_compress.distill import balance as module
from lightning_compress.distill.balance import Balance, GradientNorm, Term, Uncertainty
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from tests.contract import cases
from tests.contract.cases import Case


def a_term(value: float, weight: float = 1.0) -> Term:
    return Term(torch.tensor(value), weight, [])


def test_uncertainty_is_the_formula_with_its_gradients_and_weights_on_top() -> None:
    balance = Uncertainty(["distill", "hint/fit"])
    balance.set_extra_state({"begun": True})
    balance.log_variance.data = torch.tensor([0.5, -1.0, 2.0])
    losses, weights = (3.0, 0.25, 40.0), (0.1, 0.9, 0.0)
    task, distill, hint = (a_term(loss, weight) for loss, weight in zip(losses, weights, strict=True))
    terms = balance(task, {"distill": distill, "hint/fit": hint})
    total = task.weight * balance.task * task.loss + sum(terms.values())
    s = (0.5, -1.0, 2.0)
    wanted = sum(w * (math.exp(-v) * loss + v / 2) for w, v, loss in zip(weights, s, losses, strict=True))
    assert total.item() == pytest.approx(wanted)
    (slopes,) = torch.autograd.grad(total, balance.log_variance)
    by_hand = [w * (0.5 - math.exp(-v) * loss) for w, v, loss in zip(weights, s, losses, strict=True)]
    assert slopes.tolist() == pytest.approx(by_hand)  # a term that does not count is not drawn anywhere
    used = [w * math.exp(-v) for w, v in zip(weights, s, strict=True)]
    named = dict(zip(("balance/task", "balance/distill", "balance/hint/fit"), used, strict=True))
    assert balance.figures() == pytest.approx(named)


def test_uncertainty_begins_at_the_first_batchs_minimum_and_follows_the_losses() -> None:
    balance = Uncertainty(["a", "b"])
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.5)
    for step in range(60):
        losses = (2.0, 1e4, 0.0) if step == 0 else (2.0, 3.0, 0.5)
        task, a, b = map(a_term, losses)
        terms = balance(task, {"a": a, "b": b})
        if step == 0:
            assert balance.log_variance.exp().tolist() == pytest.approx([4.0, 2e4, 1.0], rel=1e-4)
        optimizer.zero_grad()
        torch.autograd.backward(balance.task * task.loss + sum(terms.values()))
        optimizer.step()
    found = [0.25, 1 / 6, 1.0]
    assert list(balance.figures().values()) == pytest.approx(found, rel=0.01)
    balance(a_term(1.0), {"a": a_term(-0.1), "b": a_term(1.0)})
    with pytest.raises(ValueError, match=r"losses of 0 or more, and the term 'a' is -0.1; write balance=gradient_norm"):
        balance.figures()


class Chain:
    """Three features on a line, each made of the one before; all gradients are known."""

    def __init__(self) -> None:
        self.first = torch.tensor([1.0, 2.0], requires_grad=True)
        self.second = 3.0 * self.first
        self.last = (self.second * torch.tensor([1.0, -1.0])).sum()
        self.task = Term(self.last, 0.2, [])  # (1, -1) at the second, (3, -3) at the first


def test_gradient_norms_by_hand() -> None:
    chain = Chain()
    balance = GradientNorm(["a", "b", "c", "none"])
    both = 0.5 * chain.first.sum() + chain.second.sum()  # (3.5, 3.5) at the first, (1, 1) at the second
    terms = {
        "a": Term(chain.first @ torch.tensor([4.0, 3.0]), 0.5, [chain.first]),
        "b": Term(8.0 * chain.last, 1.0, [chain.last]),
        "c": Term(both, 1.0, [chain.first, chain.second]),
        "none": Term(torch.tensor(7.0), 3.0, [torch.ones(2)]),  # that it has no gradient is for others to say
    }
    weighed = balance(chain.task, terms)
    factors = [0.5 * math.sqrt(18) / 5, 1 / 8, math.sqrt(20 / 26.5), 3.0]
    assert list(balance.figures().values()) == pytest.approx([0.2, *factors])
    values = [factor * term.loss.item() for factor, term in zip(factors, terms.values(), strict=True)]
    assert [term.item() for term in weighed.values()] == pytest.approx(values)
    assert balance.task == 1.0
    assert list(balance.parameters()) == []


def test_each_look_counts_for_its_share_and_the_odd_one_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 2)
    balance = GradientNorm(["a"])
    found = []
    for slope in (2.0, 9.0, 4.0, 9.0, math.inf, 9.0, 0.0, 9.0):
        chain = Chain()
        balance(chain.task, {"a": Term(slope * chain.last, 1.0, [chain.last])})
        found.append(1 / balance.figures()["balance/a"] ** 2)
    assert found == pytest.approx([4.0, 4.0, *[0.75 * 4.0 + 0.25 * 16.0] * 6])


def test_a_place_that_the_labels_do_not_reach() -> None:
    chain, aside = Chain(), torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="the task loss has none where 'hint/aside' does: name a module"):
        GradientNorm(["hint/aside"])(chain.task, {"hint/aside": Term(aside.sum(), 1.0, [aside])})


@pytest.mark.parametrize("half", [False, True])
def test_the_layers_below_feel_hints_as_much_as_labels(half: bool) -> None:
    net = cases.conv_net().eval()
    hints = {"near": Hint("2", loss="hint", weight=2.0), "far": Hint("5", loss="attention", weight=1000.0)}
    method = Distill(cases._teacher(), loss=None, hints=hints, balance="gradient_norm")
    inputs, targets = torch.randn(8, 1, 8, 8), torch.arange(8)
    run = Compressor([method])
    run.attach(net, inputs[:2])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs = net(inputs)
        step = run.step((inputs, targets), outputs, nn.functional.cross_entropy(outputs, targets), net)
        terms = run.loss(step)
    for name, layer, weight in (("hint/near", "2", 2.0), ("hint/far", "5", 1000.0)):
        below, own = (
            torch.autograd.grad(loss, step.features[layer], retain_graph=True)[0].norm()
            for loss in (step.task_loss, terms[name])
        )
        assert own.item() == pytest.approx(weight * below.item(), rel=0.02 if half else 1e-5)


@pytest.mark.parametrize("balance", ["uncertainty", "gradient_norm"])
def test_a_resumed_run_goes_on_bit_by_bit_and_says_its_weights(
    balance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY", 2)
    late = OneShot(last=0.5, at=0.5)

    def made() -> list[Method]:
        return [
            Distill(cases._teacher(), weight=0.5, hints={"fit": Hint("5", loss="hint", weight=late)}, balance=balance)
        ]

    def run(name: str, seed: int, start: Path | None = None) -> tuple[dict[str, Any], list[dict[str, float]]]:
        trainer = cases.trainer(tmp_path / name, max_epochs=2, limit_train_batches=3, limit_val_batches=1)
        trained = cases.fit(cases.module(Case(made), seed=seed, horizon_steps=6), trainer, start)
        return cases.load(cases.checkpoint(tmp_path / name, epoch=1)), trained.epochs

    want, (first, last) = run("whole", 0)
    found, _ = run("resumed", 5, cases.checkpoint(tmp_path / "whole", epoch=0))
    assert cases.differences(want, found) == []
    names = [f"train/balance/{name}" for name in ("task", "distill", "hint/fit")]
    assert first[names[2]] == 0.0
    assert all(last[name] > 0.0 for name in names)
    assert all(last[name] != first[name] for name in names[1:])
    if balance == "gradient_norm":
        assert last[names[0]] == 0.5
        terms = 0.5 * last["train/task_loss"] + last["train/distill"] + last["train/hint/fit"]
        assert last["train/loss"] == pytest.approx(terms, rel=1e-5)


def test_a_balance_by_name_or_your_own() -> None:
    with pytest.raises(ValueError, match=r"Distill: balance: no 'gradient_norms'.*did you mean 'gradient_norm'"):
        Distill(nn.Linear(4, 3), balance="gradient_norms")

    class Halved(Balance):
        def forward(self, task: Term, terms: Any) -> dict[str, Tensor]:
            return {name: term.loss / 2 for name, term in terms.items()}

    assert isinstance(Distill(nn.Linear(4, 3), balance=Halved).balance, Halved)
    learned = Distill(nn.Linear(4, 3), balance="lightning_compress.distill.balance.Uncertainty")
    (group,) = learned.param_groups()
    assert group == {"params": [*learned.balance.parameters()], "weight_decay": 0.0}
    assert group["params"][0].shape == (2,)
