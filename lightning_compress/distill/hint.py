"""`Hint`: a loss term on what chosen modules of student and teacher put out."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.core import lookup, surgery
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.tap import check_names
from lightning_compress.distill import contrast, features, layer_map, learned, relations, review
from lightning_compress.distill.adapters import Adapted, negative_mean, taken
from lightning_compress.distill.asking import asked

_OFFERED = ("targets", "index", "given")
Layers = Mapping[str, Tensor]


@final
class Hint(nn.Module):
    """`weight * loss(student, teacher, ...)` on the outputs of the modules called `student` and `teacher`.

    Names are those of `named_modules()`, one or a list; without `teacher` they are the student's. The terms of several
    pairs are summed, unless the loss takes them together. With `layers` both are regular expressions instead, searched
    in the names, and which of the student's modules learns from which of the teacher's says a function of
    `distill/layer_map.py`, by name, or a dotted path. `loss` is the name of a function of `distill/features.py` or
    `distill/relations.py`, of a class of `learned.py`, `contrast.py` or `review.py`, or a dotted path; `options` sets
    its own options; `weight` is a number or a schedule of progress.

    Raises:
        ValueError: lists of different lengths, a negative weight, no such loss.

    >>> Hint("layer3", loss="attention", weight=1000.0).teacher
    ('layer3',)
    """

    def __init__(
        self,
        student: str | Sequence[str],
        teacher: str | Sequence[str] | None = None,
        *,
        loss: str | Callable[..., Any],
        weight: float | Schedule = 1.0,
        options: Mapping[str, Any] | None = None,
        layers: str | Callable[[int, int], list[tuple[int, int]]] | None = None,
    ) -> None:
        super().__init__()
        self.student = _names(student)
        self.teacher = self.student if teacher is None else _names(teacher)
        self._map = None if layers is None else lookup.function(layers, layer_map)
        self._patterns = self.student, self.teacher
        if self._map is not None and max(len(names) for names in self._patterns) > 1:
            raise ValueError("Hint: with layers, student and teacher are one regular expression each, not lists")
        if len(self.student) != len(self.teacher) or not self.student:
            raise ValueError(
                "Hint: expected as many modules of the teacher as of the student, one or more; "
                f"got {len(self.teacher)} and {len(self.student)}"
            )
        self.weight = as_schedule(weight)
        if min(self.weight(0.0), self.weight(1.0)) < 0.0:
            raise ValueError("Hint: weight must not be negative")
        self.loss = lookup.function(loss, features, relations, learned, contrast, review)
        self.options = dict(options or {})
        #: What is learned for each pair, or for all together; made by `build`.
        self.parts = nn.ModuleList()
        self._asked: frozenset[str] = frozenset()

    def find(self, student: nn.Module, teacher: nn.Module) -> None:
        """With `layers`, look for the modules that the expressions mean.

        Raises:
            ValueError: there are none, or fewer of the teacher than of the student.
        """
        if self._map is None:
            return
        ours, theirs = (_matches(net, *names) for net, names in zip((student, teacher), self._patterns, strict=True))
        pairs = self._map(len(ours), len(theirs))
        if len(ours) > len(theirs) or not pairs:
            raise ValueError(
                f"Hint: {getattr(self._map, '__name__', self._map)!r} needs at least as many layers of the teacher as "
                f"of the student, and pairs the student's; got {len(ours)} of the student and {len(theirs)} of the "
                f"teacher for {self._patterns[0][0]!r}: choose another teacher, or another map"
            )
        self.student = tuple(ours[one] for one, _ in pairs)
        self.teacher = tuple(theirs[other] for _, other in pairs)

    def asks(self, name: str) -> bool:
        """Whether the loss asks for what is offered as `name`, once it is built."""
        return name in self._asked

    def _groups(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """The pairs that one part takes."""
        if taken(self.loss).several:
            return [(self.student, self.teacher)]
        return [((one,), (other,)) for one, other in zip(self.student, self.teacher, strict=True)]

    def build(self, student: Layers, teacher: Layers, model: nn.Module) -> None:
        """Make what is learned to the shapes of an example's features; `model` is the teacher.

        Raises:
            ValueError: the loss cannot be taken of them.
        """
        for ours, theirs in self._groups():
            one, other = self._of(student, ours), self._of(teacher, theirs)
            try:
                self.parts.append(self._part(one, other, model, theirs))
            except (ValueError, RuntimeError, IndexError) as error:
                shapes = [
                    list(layers[name].shape) for layers, names in ((student, ours), (teacher, theirs)) for name in names
                ]
                raise ValueError(
                    f"Distill: {getattr(self.loss, '__name__', self.loss)!r} cannot compare {', '.join(ours)} of the "
                    f"student with {', '.join(theirs)} of the teacher, shapes {', '.join(map(str, shapes))}: {error}"
                ) from error

    def _of(self, layers: Layers, names: Sequence[str]) -> Any:
        """The features of `names`, in float32: a list for a loss that takes several, else of the one."""
        found = [layers[name].float() for name in names]
        return found if taken(self.loss).several else found[0]

    def _part(self, student: Any, teacher: Any, model: nn.Module, theirs: Sequence[str]) -> nn.Module:
        if isinstance(self.loss, type):
            asked(self.loss, (), self.options, owner="Distill")
            made: nn.Module = self.loss(_shapes(student), _shapes(teacher), **self.options)
            self._asked = asked(made.forward, _OFFERED, {}, owner="Distill")
            return made
        wanted = asked(self.loss, (*_OFFERED, "margin"), self.options, owner="Distill")
        self._asked = wanted - {"margin"}
        margin = _margin(model.get_submodule(theirs[0])) if "margin" in wanted else None
        part = Adapted(partial(self.loss, **self.options), _shapes(student), _shapes(teacher), margin)
        with surgery.evaluating(part), torch.no_grad():  # what cannot work is known before anything is trained
            known: dict[str, Tensor] = dict.fromkeys(("targets", "index"), torch.arange(len(teacher)))
            if self.asks("given"):
                known["given"] = torch.ones(len(teacher), teacher.shape[-2], dtype=torch.bool)
            part(student, teacher, **{name: known[name] for name in self._asked})
        return part

    def prepare(self, batches: Callable[[], Iterator[Layers]]) -> None:
        """Show the teacher's features to what learns from them beforehand."""
        for part, (_, theirs) in zip(self.parts, self._groups(), strict=True):
            if hasattr(part, "prepare"):
                part.prepare(lambda names=theirs: (self._of(found, names) for found in batches()))  # type: ignore[operator]

    def forward(self, student: Layers, teacher: Layers, offered: Mapping[str, Any]) -> Tensor:
        """The sum over the parts, in float32 whatever the networks run in; `offered` are targets, index and given."""
        known = {name: offered[name] for name in self._asked}
        if known.get("index", 0) is None:
            raise ValueError("Distill: a hint needs to know samples again; give batches (inputs, targets, index, view)")
        losses = []
        for part, (ours, theirs) in zip(self.parts, self._groups(), strict=True):
            with torch.autocast(student[ours[0]].device.type, enabled=False):
                losses.append(part(self._of(student, ours), self._of(teacher, theirs), **known))
        return torch.stack(losses).sum()


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _matches(model: nn.Module, pattern: str) -> list[str]:
    found = [name for name, _ in model.named_modules() if re.search(pattern, name)]
    if not found:
        names = [name for name, _ in model.named_modules() if name]
        raise ValueError(
            f"Hint: no module of {type(model).__name__} matches {pattern!r}: it has {', '.join(names[:8])}, ... "
            f"({len(names)} names)"
        )
    return found


def _shapes(given: Any) -> Any:
    return given.shape if isinstance(given, Tensor) else [one.shape for one in given]


def _margin(module: nn.Module) -> Tensor:
    if not isinstance(module, _BatchNorm) or module.weight is None:
        raise ValueError(
            f"the margin is that of a batch norm with a scale, got {type(module).__name__}: "
            "name a batch norm of the teacher, as layer3.0.bn2"
        )
    return negative_mean(module.bias, module.weight)


def outputs_of(model: nn.Module, names: Iterable[str], example: Any) -> dict[str, Tensor]:
    """What the modules `names` of `model` put out for `example` in eval mode.

    Raises:
        ValueError: there is no such module; it puts out no tensor, or one that a later module changes in place.

    >>> outputs_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), ["0"], torch.ones(1, 2))["0"].shape
    torch.Size([1, 3])
    """
    names = tuple(names)
    check_names(model, names)
    found: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def note(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"Distill: {name!r} puts out a {type(output).__name__}; name a module that gives one tensor"
            )
        found[name], versions[name] = output, output._version

    surgery.watched(model, example, nullcontext(), before={}, after={name: partial(note, name) for name in names})
    for name in names:
        if name not in found:
            raise ValueError(f"Distill: the network does not call {name!r} by itself; name a module that it calls")
        if found[name]._version != versions[name]:
            raise ValueError(
                f"Distill: what {name!r} puts out is changed in place by a module after it; name that one, "
                "or build the network with inplace=False"
            )
    return found
