"""`Adversarial`: a student learns to be taken for its teacher by a discriminator that learns to tell them apart."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from lightning_compress.core import lookup
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.distill import adversarial_losses
from lightning_compress.distill.discriminator import Discriminator
from lightning_compress.distill.effect import Effects
from lightning_compress.distill.teacher import Teacher, as_teacher

_NAME = "adversarial"
_ADAM = partial(torch.optim.Adam, lr=1e-4)
# From which share of right answers on it wins, up to which it guesses, and from which gap on it should not.
_WINS, _GUESSES, _APART = 0.98, 0.55, 0.25
_SMALLEST = 1e-12


@final
class Adversarial(Method):
    """Adds `weight` times what the student pays for being told from the teacher; it is the generator of a GAN.

    The discriminator sees logits, and with `conditional` has to read the class off them too, which the student has to
    make easy (Xu et al. 2017, arXiv 1709.00513); or it sees what the student's module `layer` and the teacher's
    `teacher_layer` (the one of the same name, if not given) put out, averaged over the places of a map (Belagiannis et
    al. 2018, arXiv 1803.10750), through a linear adapter if widths differ: the same as a 1x1 convolution before the
    mean. It is an MLP with the widths `hidden` and takes `steps` of its own `optimizer` after each of the student's;
    with `doubt`, a share of the student's samples count as the teacher's for it, against its winning. `loss` is a
    function of `distill/adversarial_losses.py` by name, or a dotted path.

    A discriminator that is always right teaches little, and so does one that guesses while the student is far off: if
    either holds over `patience` steps there is a warning, once. No error: other terms go on, and it may recover.

    Raises:
        ValueError: a setting out of range, or features that do not go together.

    >>> Adversarial(nn.Linear(2, 2), weight=0.1).task_weight(0.5)
    1.0
    """

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(
        self,
        teacher: nn.Module | Teacher,
        *,
        layer: str | None = None,
        teacher_layer: str | None = None,
        conditional: bool = False,
        weight: float | Schedule = 0.1,
        loss: str | Callable[[Tensor, bool], Tensor] = "non_saturating",
        hidden: Sequence[int] = (128, 128),
        optimizer: Callable[[Iterable[Any]], Optimizer] = _ADAM,
        steps: int = 1,
        doubt: float = 0.0,
        patience: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.weight = as_schedule(weight)
        if min(self.weight(0.0), self.weight(1.0)) < 0 or steps < 1 or patience < 1 or not 0.0 <= doubt < 0.5:
            raise ValueError(
                "Adversarial: weight is not negative, steps and patience count from 1 up, doubt lies in [0, 0.5); "
                f"got {self.weight(0.0):g} to {self.weight(1.0):g}, {steps=}, {patience=}, {doubt=}"
            )
        if layer is None and teacher_layer is not None:
            raise ValueError(f"Adversarial: teacher_layer={teacher_layer!r} needs layer, the student's; write both")
        self.teacher = as_teacher(teacher)
        if layer is not None and self.teacher.cache:
            raise ValueError(
                "Adversarial: a teacher's cache keeps its outputs, not its features; write teacher.cache=false"
            )
        self.taps = () if layer is None else (layer,)
        self.conditional, self.steps = conditional, steps
        function = lookup.function(loss, adversarial_losses)
        self._make = partial(Discriminator, hidden=hidden, optimizer=optimizer, loss=function, doubt=doubt, seed=seed)
        self._teacher_layer = teacher_layer or layer
        self.health = Health(patience)
        # Made when the first features are there, as a checkpoint was by then: its state waits.
        self.discriminator: Discriminator | None = None
        self._waiting: dict[str, Any] = {}
        # Features, and targets where they are looked at, of the batches since the last optimizer step.
        self._seen: list[tuple[Tensor, ...]] = []
        self._effects = Effects([_NAME])

    def get_extra_state(self) -> dict[str, Any]:
        """The discriminator, its optimizer, and how it has fared."""
        if self.discriminator is None:
            return self._waiting
        return {"discriminator": self.discriminator.state(), "health": self.health.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take them from the checkpoint."""
        self._waiting = state
        if state:
            self.health.load_state(state["health"])
            if self.discriminator is not None:
                self.discriminator.load_state(state["discriminator"])

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """The student stays as it is, but it must not be its own teacher; the teacher's module is looked for."""
        self.teacher.must_differ(model, owner="Adversarial")
        if self._teacher_layer is not None:
            self.teacher.tap([self._teacher_layer])
        return model

    def loss(self, step: Step) -> dict[str, Tensor]:
        """What the student pays for being told from the teacher."""
        if not isinstance(step.outputs, Tensor) and (self.conditional or not self.taps):
            raise ValueError(
                "Adversarial: expected one output, the logits, and the model has several heads; write layer=NAME, a "
                "module that they share, and conditional=false"
            )
        student, teacher = self._features(step)
        targets = (step.targets,) if self.conditional else ()
        if self.discriminator is None:
            self.discriminator = self._made(student, teacher, step.outputs.shape[1] if self.conditional else 0)
        term, weight = self.discriminator.fooled(student, *targets), self.weight(step.progress)
        if weight > 0:
            self._effects.see(_NAME, term, [student])
        self._seen.append((student.detach(), teacher, *targets))
        return {_NAME: weight * term}

    def _made(self, student: Tensor, teacher: Tensor, classes: int) -> Discriminator:
        made = self._make((student.shape[1], teacher.shape[1]), classes=classes, device=student.device)
        if self._waiting:
            made.load_state(self._waiting["discriminator"])
        return made

    def _features(self, step: Step) -> tuple[Tensor, Tensor]:
        """What the discriminator is shown, [batch, width] in float32: the student's and the teacher's."""
        soft = self.teacher.of(step)
        if self._teacher_layer is not None:
            (ours,), theirs = self.taps, self._teacher_layer
            return _pooled(step.features[ours], ours), _pooled(self.teacher.features[theirs], theirs)
        if soft.shape != step.outputs.shape:
            raise ValueError(
                f"Adversarial: teacher and student must put out the same shape, got {tuple(soft.shape)} and "
                f"{tuple(step.outputs.shape)}; were they built for different class counts?"
            )
        return step.outputs.float(), soft.float()

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Let the discriminator learn from what it was shown since the last step; how it fares."""
        if self.discriminator is None or not self._seen:
            return {}
        gathered = [torch.cat(parts) for parts in zip(*self._seen, strict=True)]
        self._seen = []
        return self.health.see(self.discriminator.learn(*gathered, steps=self.steps))

    def settled(self, progress: float) -> bool:
        """Whether the term has counted for once."""
        return self._effects.settled

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """A term that is zero, or does not move the student."""
        return self._effects.fault


def _pooled(features: Any, name: str) -> Tensor:
    """The mean over the places of a map [batch, width, rows, columns] or of tokens [batch, tokens, width]."""
    if not isinstance(features, Tensor) or not 2 <= features.dim() <= 4:
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"Adversarial: expected {name!r} to put out [batch, width], [batch, tokens, width] or [batch, width, rows, "
            f"columns], got {got}; choose another layer"
        )
    places = {2: (), 3: (1,), 4: (2, 3)}[features.dim()]
    return features.float().mean(places) if places else features.float()


@final
class Health:
    """How a discriminator fares, over the last `patience` steps or so: what to log, and a warning where it goes wrong.

    >>> health = Health(patience=1)
    >>> health.see(torch.tensor([0.75, 1.2, 0.0, 1.0, 0.5, 1.25]))["adversarial/gap"]
    0.5
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._mean, self._count = torch.empty(0), 0
        self._warned: set[str] = set()

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"mean": self._mean.clone(), "count": self._count}

    def load_state(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._mean, self._count = state["mean"].clone(), state["count"]

    def see(self, told: Tensor) -> dict[str, float]:
        """Take in what `Discriminator.learn` gives; figures, with the latest steps counting most."""
        self._count += 1
        # The mean of the first `patience` steps, from then on each new one counts for that share.
        share = 1.0 / min(self._count, self.patience)
        self._mean = told if self._count == 1 else self._mean.to(told.device).lerp(told, share)
        accuracy, loss, gap = torch.stack([*self._mean[:2], _gap(self._mean[2:])]).tolist()
        if self._count >= self.patience:
            self._warn(accuracy, gap)
        return {
            f"{_NAME}/discriminator_accuracy": accuracy,
            f"{_NAME}/discriminator_loss": loss,
            f"{_NAME}/gap": gap,
        }

    def _warn(self, accuracy: float, gap: float) -> None:
        if accuracy >= _WINS:
            self._say(
                "wins",
                f"it is right in {accuracy:.0%} of cases, which leaves the student little to go by; lower its "
                "optimizer's learning rate, its steps or hidden widths, give it some doubt, or raise weight",
            )
        elif accuracy <= _GUESSES and gap >= _APART:
            self._say(
                "has collapsed",
                f"it is right in {accuracy:.0%} of cases, though the student is {gap:.2g} of the teacher's spread off; "
                "its optimizer's learning rate is too low for it to learn, or so high that its units died, or its "
                "steps are too few, or weight is so large that the student runs ahead of it",
            )

    def _say(self, trouble: str, why: str) -> None:
        first = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
        if first and trouble not in self._warned:
            about = f"Adversarial: over {self.patience} steps the discriminator {trouble}"
            warnings.warn(f"{about}: {why}", RuntimeWarning, stacklevel=2)
        self._warned.add(trouble)


def _gap(moments: Tensor) -> Tensor:
    """How far means and deviations of the student's features are from the teacher's, in units of the teacher's."""
    mean, squares = moments.view(2, 2, -1).unbind(1)
    variance = (squares - mean.square()).clamp(min=0)
    off = mean.diff(dim=0).square() + variance.sqrt().diff(dim=0).square()
    return (off.sum() / variance[1].sum().clamp(min=_SMALLEST)).sqrt()
