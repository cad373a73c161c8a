"""`Distill`: learning from a teacher's outputs beside the labels."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

from torch import Tensor, nn

from lightning_compress.core import lookup
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.distill import logits
from lightning_compress.distill.asking import asked
from lightning_compress.distill.teacher import Teacher


@final
class Distill(Method):
    """Adds `weight * loss(student, teacher, ...)` and leaves `1 - weight` of the task loss (arXiv 1503.02531).

    `temperature` and `weight` are numbers or schedules of progress; `loss` is a function of `distill/logits.py` by
    name, or a dotted path, and `options` sets its own options. With `labels`, a number or schedule too, the task loss
    is weighed by that and `weight` need not be a share. With `cache` the teacher sees each training sample once, or
    never if its `outputs` for all of them are given, [samples, classes]; with `compile_teacher` it runs compiled.

    Raises:
        ValueError: a temperature that is not positive, a negative weight, or one above 1 that leaves the labels less
            than nothing; an option that the loss does not have.

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
        labels: float | Schedule | None = None,
        loss: str | Callable[..., Tensor] = "kl",
        options: Mapping[str, Any] | None = None,
        cache: bool = False,
        outputs: Tensor | None = None,
        compile_teacher: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.weight = as_schedule(temperature), as_schedule(weight)
        self.labels = None if labels is None else as_schedule(labels)
        self._check_numbers()
        self.function, self.options = lookup.function(loss, logits), dict(options or {})
        self._asked = asked(self.function, ("temperature", "targets"), self.options, owner="Distill")
        self.teacher = Teacher(teacher, cache=cache, outputs=outputs, compile=compile_teacher)
        self._last: tuple[Tensor, bool] | None = None

    def _check_numbers(self) -> None:
        for progress in (0.0, 1.0):
            if self.temperature(progress) <= 0:
                raise ValueError(f"Distill: temperature must be positive, got {self.temperature(progress):g}")
            weight = self.weight(progress)
            if self.labels is None and not 0.0 <= weight <= 1.0:
                raise ValueError(
                    f"Distill: weight is a share in [0, 1], got {weight:g}; with labels=1 it may be any number"
                )
            if weight < 0.0 or (self.labels is not None and self.labels(progress) < 0.0):
                raise ValueError("Distill: weight and labels must not be negative")

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Nothing changes, but the student must not be its own teacher."""
        if {id(p) for p in model.parameters()} & {id(p) for p in self.teacher.model.parameters()}:
            raise ValueError("Distill: teacher and student share parameters; give the teacher a copy of its own")
        return model

    def task_weight(self, progress: float) -> float:
        """What is left to the labels."""
        return 1.0 - self.weight(progress) if self.labels is None else self.labels(progress)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The distillation term."""
        soft = self.teacher(step.inputs, step.index, step.view)
        if soft.shape != step.outputs.shape:
            raise ValueError(
                f"Distill: teacher and student must put out the same shape, got {tuple(soft.shape)} and "
                f"{tuple(step.outputs.shape)}; were they built for different class counts?"
            )
        offered = {"temperature": self.temperature(step.progress), "targets": step.targets}
        term = self.function(step.outputs, soft, **{name: offered[name] for name in self._asked}, **self.options)
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
