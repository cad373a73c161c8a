"""`OwnTeacher`: a network whose end teaches what comes before it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core import surgery
from lightning_compress.core.inputs import call
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.tap import Taps
from lightning_compress.core.task import by_head, named_loss
from lightning_compress.distill.logits import kl


@final
class OwnTeacher(Method):
    """Be your own teacher (Zhang et al. 2019, arXiv 1905.08094): a classifier on what each of `taps` puts out.

    `taps` names modules of the model that put out [batch, channels, height, width] or [batch, features]. The classifier
    on each is trained on labels, on the model's own outputs and on its features `F` at the end, with the sum over taps

        (1 - weight) * task_loss + weight * KL(outputs || classifier's) + hint * mean((F_classifier - F)^2)

    added to the model's loss; so the layers below a tap learn from its classifier, while through the model's outputs
    and features, as targets, nothing is learned. `deepest` names the module that puts out `F`, which is averaged over
    its positions; without it there is no hint. A classifier is a bottleneck of 1x1, 3x3 and 1x1 convolutions (a linear
    layer on [batch, features]) as wide as `F`, the mean over positions, and a linear layer for each head of the model,
    over which the sums are taken.

    `weight`, `hint` and `temperature` are numbers or schedules of progress. The paper sums the squares of the hint
    where we take their mean, so that `hint` means the same at every width. The classifiers are in the checkpoint and
    never in the deployed model.

    Raises:
        ValueError: no taps, one that is not there or puts out something else, or a number out of range.

    >>> method = OwnTeacher(["0"], deepest="1")
    >>> _ = method.attach(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)), torch.ones(2, 4))
    >>> [tuple(p.shape) for p in method.param_groups()[0]["params"]]
    [(6, 8), (6,), (3, 6), (3,)]
    """

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(
        self,
        taps: Sequence[str],
        *,
        deepest: str | None = None,
        weight: float | Schedule = 0.3,
        hint: float | Schedule = 0.03,
        temperature: float | Schedule = 3.0,
        task_loss: str | Callable[..., Tensor] = "cross_entropy",
    ) -> None:
        super().__init__()
        if isinstance(taps, str) or not taps:
            raise ValueError(f"OwnTeacher: taps is a list of modules' names, as [layer1, layer2]; got {taps!r}")
        self.shallow, self.deepest = tuple(taps), deepest
        self.taps = (*self.shallow, *([deepest] if deepest else []))
        self.weight, self.hint, self.temperature = as_schedule(weight), as_schedule(hint), as_schedule(temperature)
        for progress in (0.0, 1.0):
            if not 0.0 <= self.weight(progress) <= 1.0 or self.hint(progress) < 0 or self.temperature(progress) <= 0:
                raise ValueError(
                    "OwnTeacher: weight is a share in [0, 1], hint 0 or more, temperature positive; got "
                    f"{self.weight(progress):g}, {self.hint(progress):g}, {self.temperature(progress):g}"
                )
        self.task_loss = named_loss(task_loss, owner="OwnTeacher: task_loss")
        self.classifiers = nn.ModuleList()
        self._last: tuple[dict[str, Tensor], list[str]] | None = None

    @torch.no_grad()
    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """The model stays; the classifiers are made for the shapes that its modules put out."""
        twin = surgery.plain(model, below=True)  # quantizers have seen nothing yet
        taps = Taps(twin, self.taps)
        with surgery.evaluating(twin):
            classes = {head: outputs.shape[1] for head, outputs in by_head(call(twin, example)).items()}
        widths = {name: _width(name, taps.features.get(name)) for name in self.taps}
        for name in self.shallow:
            width = widths[self.deepest or name]
            self.classifiers.append(_Classifier(widths[name], width, classes, maps=taps.features[name].dim() == 4))
        return model

    def param_groups(self) -> list[dict[str, Any]]:
        """The classifiers' parameters."""
        return [{"params": list(self.classifiers.parameters())}]

    def loss(self, step: Step) -> dict[str, Tensor]:
        """What the classifiers learn from labels, from the outputs, and from the deepest features."""
        zero, soft = step.task_loss.new_zeros((), dtype=torch.float32), by_head(step.outputs)
        sums = dict.fromkeys(("own_labels", "own_outputs", *(["own_features"] if self.deepest else [])), zero)
        for name, classifier in zip(self.shallow, self.classifiers, strict=True):
            features, logits = classifier(step.features[name])
            sums["own_labels"] = sums["own_labels"] + self.task_loss(logits.get("", logits), step.targets)
            for head, outputs in soft.items():
                apart = kl(logits[head], outputs.detach(), self.temperature(step.progress))
                sums["own_outputs"] = sums["own_outputs"] + apart
            if self.deepest:
                end = _pooled(step.features[self.deepest]).detach()
                sums["own_features"] = sums["own_features"] + F.mse_loss(features.float(), end.float())
        cut = [name for name in self.shallow if not step.features[name].requires_grad]
        self._last = ({name: term.detach() for name, term in sums.items()}, cut)
        weight = self.weight(step.progress)
        factors = {"own_labels": 1 - weight, "own_outputs": weight, "own_features": self.hint(step.progress)}
        return {name: factors[name] * term for name, term in sums.items()}

    def settled(self, progress: float) -> bool:
        """From the first step on."""
        return self._last is not None

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """Terms that are exactly zero, or whose gradient does not reach the model."""
        assert self._last is not None
        sums, cut = self._last
        if cut:
            return f"no gradient goes from {', '.join(cut)} into the model: is all below frozen, or detached?"
        empty = [name for name, term in sums.items() if float(term) == 0.0]
        return f"{', '.join(empty)} is exactly zero: are outputs or features constant?" if empty else None


@final
class _Classifier(nn.Module):
    """Features of `width` channels made of a tapped output, and logits made of those: `classes` by head."""

    def __init__(self, channels: int, width: int, classes: dict[str, int], *, maps: bool) -> None:
        super().__init__()
        self.features = _bottleneck(channels, width) if maps else nn.Linear(channels, width)
        self.logits = nn.Linear(width, sum(classes.values()))  # of all heads, side by side
        self.classes = classes

    def forward(self, tapped: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Features [batch, width] and logits [batch, classes] by head."""
        features = _pooled(self.features(tapped))
        parts = self.logits(features).split(list(self.classes.values()), dim=1)
        return features, dict(zip(self.classes, parts, strict=True))


def _bottleneck(channels: int, width: int) -> nn.Sequential:
    within = max(1, width // 4)
    return nn.Sequential(
        *(nn.Conv2d(channels, within, 1, bias=False), nn.BatchNorm2d(within), nn.ReLU()),
        *(nn.Conv2d(within, within, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(within), nn.ReLU()),
        *(nn.Conv2d(within, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
    )


def _pooled(features: Tensor) -> Tensor:
    """The mean over positions, [batch, channels]."""
    return features.mean((2, 3)) if features.dim() == 4 else features


def _width(name: str, features: Tensor | None) -> int:
    if not isinstance(features, Tensor) or features.dim() not in (2, 4):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            "OwnTeacher: taps must put out [batch, channels, height, width] or [batch, features] in a forward pass; "
            f"{name} gave {got}"
        )
    return features.shape[1]
