"""`Distill`: learning from a teacher's outputs beside the labels."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_compress.core import lookup
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.distill import logits
from lightning_compress.distill.teacher import Teacher


@final
class Distill(Method):
    """Adds `weight * loss(student, teacher, temperature)` and leaves `1 - weight` of the task loss (arXiv 1503.02531).

    `temperature` and `weight` are numbers or schedules of progress; `loss` is a function of `distill/logits.py` by
    name, or a dotted path. With `cache` the teacher sees each training sample once, or never if its `outputs` for all
    of them are given, [samples, classes] for each random view; with `compile_teacher` it runs compiled. Of outputs by
    name, those of a model with several heads, each head learns from the teacher's of its name, and the terms are added
    up.

    Raises:
        ValueError: a temperature that is not positive, or a weight outside [0, 1].

    >>> Distill(nn.Linear(2, 2), weight=0.7).task_weight(0.5)
    0.30000000000000004
    """

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(
        self,
        teacher: nn.Module,
        *,
        temperature: float | Schedule = 4.0,
        weight: float | Schedule = 0.9,
        loss: str | Callable[..., Tensor] = "kl",
        cache: bool = False,
        outputs: Sequence[Tensor] = (),
        compile_teacher: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.weight = as_schedule(temperature), as_schedule(weight)
        for progress in (0.0, 1.0):
            if self.temperature(progress) <= 0:
                raise ValueError(f"Distill: temperature must be positive, got {self.temperature(progress):g}")
            if not 0.0 <= self.weight(progress) <= 1.0:
                raise ValueError(f"Distill: weight is a share in [0, 1], got {self.weight(progress):g}")
        self.function = lookup.function(loss, logits)
        self.teacher = Teacher(teacher, cache=cache, outputs=outputs, compile=compile_teacher)
        self._last: tuple[Tensor, bool] | None = None

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Nothing changes, but the student must not be its own teacher."""
        if {id(p) for p in model.parameters()} & {id(p) for p in self.teacher.model.parameters()}:
            raise ValueError("Distill: teacher and student share parameters; give the teacher a copy of its own")
        return model

    def task_weight(self, progress: float) -> float:
        """What is left to the labels."""
        return 1.0 - self.weight(progress)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The distillation term."""
        soft = self.teacher(step.inputs, step.index, step.view)
        ours, theirs = _by_head(step.outputs), _by_head(soft)
        shapes = [{name: tuple(head.shape) for name, head in heads.items()} for heads in (theirs, ours)]
        if shapes[0] != shapes[1]:
            got, own = (heads.get("", heads) for heads in shapes)
            raise ValueError(
                f"Distill: teacher and student must put out the same shape, got {got} and {own}; "
                "were they built for different class counts?"
            )
        temperature = self.temperature(step.progress)
        term = reduce(torch.add, [self.function(own, theirs[name], temperature) for name, own in ours.items()])
        self._last = (term.detach(), term.requires_grad)
        return {"distill": self.weight(step.progress) * term}

    def settled(self, progress: float) -> bool:
        """Whether the weight has been above zero."""
        return self._last is not None and self.weight(progress) > 0

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """A term without a gradient, or exactly zero."""
        assert self._last is not None
        value, differentiable = self._last
        if not differentiable:
            return "its loss carries no gradient: are the student's outputs detached?"
        if float(value) == 0.0:
            return "its loss is exactly zero: is the teacher the student itself, or are the outputs constant?"
        return None


def _by_head(outputs: Any) -> dict[str, Tensor]:
    return dict(outputs) if isinstance(outputs, Mapping) else {"": outputs}
