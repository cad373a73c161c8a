"""`ReuseClassifier`: a student that ends in its teacher's classifier and learns the features that this one reads."""

from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from lightning_compress.core import edits, reused, surgery
from lightning_compress.core.method import Compact, Edit, Method, Stage, Step
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.tap import check_names
from lightning_compress.distill.adapters import same_size
from lightning_compress.distill.effect import Effects
from lightning_compress.distill.features import hint
from lightning_compress.distill.hint import outputs_of
from lightning_compress.distill.teacher import Teacher, as_teacher

_NAME = "reuse"
_UNFIT = (
    "ReuseClassifier: given the teacher's features, the student must put out what the teacher does; here it does not. "
    "Behind features and teacher_features both have the same pooling, no layer with weights, and the classifier: name "
    "other modules, or leave features away for a linear projector;"
)


class _Head(NamedTuple):
    """The classifier of a network: its name, what came to it, and what the network put out."""

    name: str
    layer: nn.Linear
    inputs: Tensor
    outputs: Tensor


@final
class ReuseClassifier(Method):
    """SimKD (Chen et al. 2022, arXiv 2203.14001): the teacher's classifier is the student's, and labels are not used.

    The student's classifier makes room for a projector, which is trained, and the teacher's classifier, frozen. The
    only loss is `weight`, a number or schedule of progress, times the mean squared difference of projected and
    teacher's features. Both are deployed, and are pruned, quantized and so on like other layers, unless a method's
    `exclude` names them, as with `exclude=[projector]`.

    `features` and `teacher_features` (the same name, if not given) name modules that put out maps: behind the
    student's comes the paper's projector of 1x1, 3x3 and 1x1 convolutions, the inner ones with the teacher's channels
    divided by `reduction`, each with batch norm and ReLU (without the last ReLU where the teacher's features are
    negative too); the larger map is averaged to the smaller. The student's module is an nn.Sequential, to whose end it
    is put, or has no weights. Without `features` the projector is a linear layer between what comes to the student's
    classifier and what comes to the teacher's. `layer` and `teacher_layer` name the classifiers: linear layers that
    put out what the network does, and found as such if not given.

    In a later phase the student is as it was left by then, and gets the teacher's classifier once more.

    Raises:
        ValueError: a setting out of range, a cached teacher, no such classifier, or features that cannot be reused.

    >>> teacher, student = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 3)) for n in (8, 2))
    >>> student = ReuseClassifier(teacher).attach(student, torch.ones(1, 4))
    >>> [tuple(tensor.shape) for tensor in student[2].parameters()]
    [(8, 2), (8,), (3, 8), (3,)]
    """

    # Before all that changes weights, so that these are the student's own layers by then.
    stage: ClassVar[Stage] = Stage.STRUCTURE

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        *,
        features: str | None = None,
        teacher_features: str | None = None,
        layer: str | None = None,
        teacher_layer: str | None = None,
        weight: float | Schedule = 1.0,
        reduction: int = 2,
    ) -> None:
        super().__init__()
        self.weight, self.reduction = as_schedule(weight), reduction
        if min(self.weight(0.0), self.weight(1.0)) < 0 or reduction < 1:
            raise ValueError(
                "ReuseClassifier: weight is not negative, reduction counts from 1 up; "
                f"got {self.weight(0.0):g} to {self.weight(1.0):g}, {reduction=}"
            )
        if features is None and teacher_features is not None:
            raise ValueError(f"ReuseClassifier: {teacher_features=} needs features, the student's; write both")
        self.teacher = as_teacher(teacher)
        if self.teacher.cache:
            raise ValueError(
                "ReuseClassifier: a teacher's cache keeps its outputs, not its features; write teacher.cache=false"
            )
        self.features, self.layer = features, layer
        self._teacher_features, self._teacher_layer = teacher_features or features, teacher_layer
        self._read: dict[str, Tensor] = {}
        self._edits: list[Edit] = []
        self._effects = Effects([_NAME])

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put projector and classifier into the student."""
        self.teacher.must_differ(model, owner="ReuseClassifier")
        network = self.teacher.model
        theirs = _head(network, self._teacher_layer, example, whose="teacher")
        theirs.layer.register_forward_pre_hook(lambda _layer, args: self._read.update(inputs=args[0]))
        wanted = theirs.inputs
        if self._teacher_features is not None:
            wanted = outputs_of(network, [self._teacher_features], example)[self._teacher_features]
            self.teacher.tap([self._teacher_features])
        ours = _head(model, self.layer, example, whose="student")
        projector, classifier = self._names(model, ours.name)
        if projector not in dict(model.named_modules()):
            self._edits = [self._edit(model, ours, theirs.layer, wanted, example)]
            model = edits.replay(model, self._edits)
            for module in model.get_submodule(projector).requires_grad_(True).modules():
                getattr(module, "reset_parameters", lambda: None)()
        self.taps = (projector,)
        _fill(model.get_submodule(classifier), theirs.layer)
        _check_end(model, projector, wanted, theirs.outputs, example)
        return model

    def _names(self, model: nn.Module, name: str) -> tuple[str, str]:
        """What projector and classifier are called, or will be, where `name` is the classifier so far."""
        if self.features is not None:
            return surgery.dotted(self.features, reused.PROJECTOR), name
        home, _, leaf = name.rpartition(".")
        beside = surgery.dotted(home, reused.PROJECTOR)
        if leaf == reused.CLASSIFIER and beside in dict(model.named_modules()):
            return beside, name
        return surgery.dotted(name, reused.PROJECTOR), surgery.dotted(name, reused.CLASSIFIER)

    def _edit(self, model: nn.Module, ours: _Head, layer: nn.Linear, wanted: Tensor, example: Any) -> Edit:
        """What becomes of the student."""
        edit: Edit = {"kind": reused.KIND, "layer": ours.name, "shape": list(layer.weight.shape)}
        if self.features is None:
            return edit | {"widths": [ours.layer.in_features, layer.in_features]}
        maps = outputs_of(model, [self.features], example)[self.features]
        if maps.dim() != 4 or wanted.dim() != 4:
            raise ValueError(
                "ReuseClassifier: features are maps [batch, channels, rows, columns] of student and teacher, got "
                f"{list(maps.shape)} and {list(wanted.shape)}; leave features away for a linear projector"
            )
        width = wanted.shape[1]
        edit |= {"widths": [maps.shape[1], max(1, width // self.reduction), width], "after": self.features}
        size = same_size(maps, wanted)[0].shape[2:]
        if size != maps.shape[2:]:
            edit["size"] = list(size)
        return edit | {"relu": bool((wanted >= 0).all())}

    def task_weight(self, progress: float) -> float:
        """Nothing is left to the labels."""
        return 0.0

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The mean squared difference of features, in float32 whatever the networks run in."""
        self.teacher.of(step)
        ours, theirs = step.features[self.taps[0]], self._read["inputs"]
        if self._teacher_features is not None:
            theirs = self.teacher.features[self._teacher_features]
        with torch.autocast(ours.device.type, enabled=False):
            term = hint(*same_size(ours.float(), theirs.float()))
        weight = self.weight(step.progress)
        if weight > 0.0:
            self._effects.see(_NAME, term, [ours])
        return {_NAME: weight * term}

    def settled(self, progress: float) -> bool:
        """Whether the term has counted for once."""
        return self._effects.settled

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """A term that is zero, or does not move the student."""
        return self._effects.fault

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """Projector and classifier are there already; say how they came about."""
        return compact.with_edits(self._edits)


def _head(model: nn.Module, name: str | None, example: Any, *, whose: str) -> _Head:
    """The linear layer that puts out what the network does, the one called `name` if that is given."""
    seen: dict[str, tuple[Tensor, Any]] = {}

    def note(called: str, _module: nn.Module, args: Any, output: Any) -> None:
        seen[called] = args[0], output

    linear = {called: module for called, module in model.named_modules() if isinstance(module, nn.Linear)}
    surgery.watched(
        model, example, nullcontext(), before={}, after={called: partial(note, called) for called in ["", *linear]}
    )
    outputs = seen[""][1]
    ends = [called for called in linear if called in seen and _same(seen[called][1], outputs)]
    if name is not None:
        check_names(model, [name])
        ends = [called for called in ends if called in (name, surgery.dotted(name, reused.CLASSIFIER))]
    if not ends:
        raise ValueError(
            f"ReuseClassifier: expected of the {whose} one nn.Linear that puts out what the network does, the logits"
            f"{'' if name is None else f', called {name!r}'}; of {', '.join(linear) or 'none'} there is none that does"
        )
    return _Head(ends[-1], linear[ends[-1]], seen[ends[-1]][0], outputs)


def _same(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and torch.equal(one, other)


@torch.no_grad()
def _fill(classifier: nn.Module, theirs: nn.Linear) -> None:
    """The teacher's values for the student's classifier, to stay."""
    assert isinstance(classifier, nn.Linear)
    if classifier.weight.shape != theirs.weight.shape:
        raise ValueError(
            f"ReuseClassifier: the teacher's classifier has a weight of shape {list(theirs.weight.shape)}, the one the "
            f"student has by now {list(classifier.weight.shape)}: was the projector pruned? Prune with "
            "exclude=[projector], or leave ReuseClassifier away in later phases"
        )
    classifier.weight.copy_(theirs.weight)
    classifier.bias.zero_() if theirs.bias is None else classifier.bias.copy_(theirs.bias)
    classifier.requires_grad_(False)


def _check_end(model: nn.Module, projector: str, wanted: Tensor, outputs: Tensor, example: Any) -> None:
    """See that a student whose projector gives the teacher's features puts out what the teacher does."""
    found: list[Tensor] = []

    def give(*_: Any) -> Any:
        return wanted

    try:
        surgery.watched(
            model, example, nullcontext(), before={}, after={projector: give, "": lambda *args: found.append(args[2])}
        )
    except RuntimeError as error:
        raise ValueError(f"{_UNFIT} {error}") from error
    if found[0].shape != outputs.shape or not torch.allclose(found[0], outputs, rtol=1e-3, atol=1e-4):
        raise ValueError(f"{_UNFIT} outputs differ")
