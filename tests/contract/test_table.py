import copy
import importlib
import re
from pathlib import Path
from typing import ClassVar, final

import pytest
import torch
from torch import Tensor, nn

import lightning_compress
from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.max_norm import MaxNorm
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.distill.adversarial import Adversarial
from lightning_compress.distill.method import Distill
from lightning_compress.distill.mutual import Mutual
from lightning_compress.distill.own import OwnTeacher
from lightning_compress.distill.reuse import ReuseClassifier
from lightning_compress.lowrank.method import LowRank
from lightning_compress.quantize.freeze import Freeze
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.mixed import BayesianBits
from lightning_compress.share.tie import Tie
from lightning_compress.slim.method import Slim
from tests.contract import cases
from tests.contract.cases import Case


def _package_methods() -> set[type[Method]]:
    root = Path(lightning_compress.__path__[0])
    for path in root.rglob("*.py"):
        if re.search(r"^class \w+\(.*Method", path.read_text(), re.MULTILINE):
            importlib.import_module(".".join(path.relative_to(root.parent).with_suffix("").parts))
    return {found for found in Method.__subclasses__() if found.__module__.startswith("lightning_compress.")}


def test_every_method_of_the_package_has_a_row() -> None:
    in_rows = {type(method) for case in cases.ROWS.values() for method in case.build()}
    assert len(_package_methods()) >= 3
    assert {method.__name__ for method in _package_methods() - in_rows} == set()


def test_every_family_is_in_every_subset() -> None:
    families = {type(method) for method in cases.CASES[cases.ALL].build()}
    # Quantize with other quantizers, nothing alone, other teachers, what is other layers before a subset, a bound.
    apart = {Adversarial, BayesianBits, Freeze, LowRank, MaxNorm, Mutual, OwnTeacher, ReuseClassifier, Slim, Tie}
    assert families == _package_methods() - apart
    assert len(cases.SUBSETS) == 2 ** len(cases.CASES[cases.ALL].build())


@pytest.mark.parametrize("name", [n for n, c in cases.CASES.items() if len({m.stage for m in c.build()}) > 1])
def test_a_list_out_of_order_names_the_right_order(name: str) -> None:
    right = list(cases.CASES[name].build())
    names = re.escape(f"write [{', '.join(type(method).__name__ for method in right)}]")
    with pytest.raises(ValueError, match=names):
        Compressor(sorted(right, key=lambda method: -method.stage))  # of one stage, as they were


@final
class _Idle(Method):
    """A method that never does what it is there for."""

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(self, since: float) -> None:
        super().__init__()
        self.since = since

    def settled(self, progress: float) -> bool:
        return progress >= self.since

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        return "it is idle"


def test_a_method_without_effect_stops_the_run_when_its_schedule_begins() -> None:
    trained = cases.module(Case(lambda: [_Idle(since=0.5)]))
    with pytest.raises(
        NoEffectError, match=f"_Idle had no effect by step {cases.EPOCHS * cases.BATCHES // 2}: it is idle"
    ):
        cases.fit(trained, cases.trainer())


def test_a_teacher_that_is_the_student_stops_the_run() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    trained = cases.module(Case(lambda: [Distill(copy.deepcopy(student))], lambda: student))
    with pytest.raises(NoEffectError, match="Distill had no effect by step 1: the term 'distill' is exactly zero"):
        cases.fit(trained, cases.trainer())


@final
class _WithIdleLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.used(inputs.flatten(1))
        return found


def test_a_quantizer_that_sees_nothing_stops_the_run() -> None:
    trained = cases.module(Case(lambda: [Quantize(8, 8)], _WithIdleLayer))
    with pytest.raises(NoEffectError, match="inputs of idle have an empty range"):
        cases.fit(trained, cases.trainer())


@final
class _Named(Method):
    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def loss(self, step: Step) -> dict[str, Tensor]:
        return {"mine": step.task_loss}


def test_two_terms_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="two methods both call a loss term 'mine'"):
        cases.fit(cases.module(Case(lambda: [_Named(), _Named()])), cases.trainer())


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    case = Case(lambda: [Distill(cases.conv_net(), weight=0.3), _Named()])
    module = cases.fit(cases.module(case), cases.trainer(None, max_epochs=1, limit_train_batches=1))
    (row,) = module.epochs
    wanted = 0.7 * row["train/task_loss"] + row["train/distill"] + row["train/mine"]
    assert row["train/loss"] == pytest.approx(wanted, rel=1e-6)
    assert row["train/mine"] == row["train/task_loss"]
    assert row["train/distill"] > 0
    assert torch.isfinite(torch.tensor(list(row.values()))).all()
