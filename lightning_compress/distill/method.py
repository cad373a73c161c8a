"""`Distill`: learning from a teacher's outputs and features beside the labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_compress.core import lookup
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.task import by_head
from lightning_compress.distill import logits
from lightning_compress.distill.asking import asked
from lightning_compress.distill.balance import BALANCES, Balance, Term
from lightning_compress.distill.effect import Effects
from lightning_compress.distill.hint import Hint, outputs_of
from lightning_compress.distill.teacher import Teacher, as_teacher

_NAME = "distill"


@final
class Distill(Method):
    """Adds `weight * loss(student, teacher, ...)` and leaves `1 - weight` of the task loss (arXiv 1503.02531).

    `temperature` and `weight` are numbers or schedules of progress; `loss` is a function of `distill/logits.py` by
    name, or a dotted path, and `options` sets its own options; null adds nothing. `hints` are terms on features, by
    names of your choice, each with a weight of its own. With `labels`, a number or schedule too, the task loss is
    weighed by that and `weight` need not be a share. How the teacher runs, and what is kept of its outputs, a `Teacher`
    says. Of outputs by name, those of a model with several heads, each head learns from the teacher's of its name, and
    the terms are added up. `balance` is how the terms and the task loss are weighed besides, by `weight` and its
    fellows: "fixed", not at all, or "uncertainty" or "gradient_norm" (`distill/balance.py`), or what makes a `Balance`
    of the terms' names, or the dotted path of that.

    Raises:
        ValueError: a temperature that is not positive, a negative weight, or one above 1 that leaves the labels less
            than nothing; an option that the loss does not have; hints of a teacher with a cache; nothing to learn.

    >>> Distill(nn.Linear(2, 2), weight=0.7).task_weight(0.5)
    0.30000000000000004
    """

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        *,
        temperature: float | Schedule = 4.0,
        weight: float | Schedule = 0.9,
        labels: float | Schedule | None = None,
        loss: str | Callable[..., Tensor] | None = "kl",
        options: Mapping[str, Any] | None = None,
        hints: Mapping[str, Hint] | None = None,
        balance: str | Callable[[Sequence[str]], Balance] = "fixed",
    ) -> None:
        super().__init__()
        self.temperature, self.weight = as_schedule(temperature), as_schedule(weight if loss is not None else 0.0)
        self.labels = None if labels is None else as_schedule(labels)
        self._check_numbers()
        self.function = None if loss is None else lookup.function(loss, logits)
        self.options = dict(options or {})
        self._asked: frozenset[str] = frozenset()
        if self.function is not None:
            self._asked = asked(self.function, ("temperature", "targets"), self.options, owner="Distill")
        hints = hints or {}
        for hint in hints.values():
            lookup.instance(hint, Hint, owner="a hint of Distill")
        self.hints, self._names = nn.ModuleList(hints.values()), [f"hint/{name}" for name in hints]
        self.teacher = as_teacher(teacher)
        self._check_terms()
        self._padding_id: int | None = None
        names = [*([_NAME] if self.function is not None else []), *self._names]
        self._effects = Effects(names)
        self.balance: Balance = lookup.among(balance, BALANCES, owner="Distill: balance")(names)

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

    def _check_terms(self) -> None:
        if self.function is None and not self.hints:
            raise ValueError("Distill: loss=null without hints leaves nothing to learn from the teacher; add a hint")
        if self.teacher.cache and self.hints:
            raise ValueError(
                "Distill: a teacher's cache keeps its outputs only, and hints need its features; "
                "write teacher.cache=false"
            )

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Build what hints learn to the shapes of both networks' features; the student must not be its own teacher."""
        self.teacher.must_differ(model, owner="Distill")
        if self.hints:
            for hint in self._hints():
                hint.find(model, self.teacher.model)
            self.taps = tuple(dict.fromkeys(name for hint in self._hints() for name in hint.student))
            names = list(dict.fromkeys(name for hint in self._hints() for name in hint.teacher))
            student = outputs_of(model, self.taps, example)
            teacher = outputs_of(self.teacher.model, names, example)
            for hint in self._hints():
                hint.build(student, teacher, self.teacher.model)
            self.teacher.tap(names)
            self._padding_id = getattr(model, "padding_id", None)
            if self._padding_id is None and any(hint.asks("given") for hint in self._hints()):
                raise ValueError("Distill: a hint needs to know where texts end: expected a model with a padding_id")
        return model

    def _hints(self) -> list[Hint]:
        return list(self.hints)  # type: ignore[arg-type]

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Show the teacher's features to what learns from them beforehand."""

        def features() -> Iterator[Mapping[str, Tensor]]:
            for inputs, *_ in batches:
                self.teacher(inputs)
                yield self.teacher.features

        for hint in self._hints():
            hint.prepare(features)

    def param_groups(self) -> list[dict[str, Any]]:
        """What the hints learn, and the balance: that without decay, which would pull its weights to 1."""
        own = [parameter for parameter in self.hints.parameters() if parameter.requires_grad]
        balance = list(self.balance.parameters())
        groups: list[dict[str, Any]] = [{"params": own}, {"params": balance, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def task_weight(self, progress: float) -> float | Tensor:
        """What is left to the labels, as the balance has it."""
        return self._left(progress) * self.balance.task

    def _left(self, progress: float) -> float:
        return 1.0 - self.weight(progress) if self.labels is None else self.labels(progress)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The term on outputs, and one for each hint."""
        soft = self.teacher.of(step)
        ours, theirs = by_head(step.outputs), by_head(soft)
        terms = {}
        if self.function is not None:
            terms[_NAME] = Term(self._term(step, ours, theirs), self.weight(step.progress), list(ours.values()))
        given = None if self._padding_id is None else step.inputs != self._padding_id
        offered = {"targets": step.targets, "index": step.index, "given": given}
        for name, hint in zip(self._names, self._hints(), strict=True):
            looked_at = [step.features[layer] for layer in hint.student]
            term = hint(step.features, self.teacher.features, offered)
            terms[name] = Term(term, hint.weight(step.progress), looked_at)
        for name, each in terms.items():
            if each.weight > 0.0:
                self._effects.see(name, each.loss, each.outputs)
        return self.balance(Term(step.task_loss, self._left(step.progress), []), terms)  # type: ignore[no-any-return]

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """The weights in use, where the balance changes them."""
        return self.balance.figures()

    def _term(self, step: Step, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
        shapes = [{name: tuple(head.shape) for name, head in heads.items()} for heads in (theirs, ours)]
        if shapes[0] != shapes[1]:
            got, own = (heads.get("", heads) for heads in shapes)
            raise ValueError(
                f"Distill: teacher and student must put out the same shape, got {got} and {own}; "
                "were they built for different class counts?"
            )
        assert self.function is not None
        # Of several heads the targets are columns, in the order of the heads' names.
        targets = {"": step.targets} if "" in ours else dict(zip(sorted(ours), step.targets.unbind(1), strict=True))
        terms: list[Tensor] = []
        for name, outputs in ours.items():
            offered = {"temperature": self.temperature(step.progress), "targets": targets[name]}
            asked = {kind: offered[kind] for kind in self._asked}
            terms.append(self.function(outputs, theirs[name], **asked, **self.options))
        return reduce(torch.add, terms)

    def settled(self, progress: float) -> bool:
        """Whether every term has counted for once."""
        return self._effects.settled

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """A term that is zero, or does not move the student."""
        return self._effects.fault
