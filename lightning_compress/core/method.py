"""The protocol of a compression method."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, ClassVar, Self, final

from torch import Tensor, nn

from lightning_compress.core.stored import Stored

Edit = dict[str, Any]


class Stage(IntEnum):
    """Where in the stack a method acts; a list of methods is in this order."""

    STRUCTURE = 0
    SPARSITY = 1
    SHARING = 2
    NUMERICS = 3
    OBJECTIVE = 4


@final
@dataclass(frozen=True)
class Step:
    """What one training step showed.

    `inputs` and `targets` have the batch first; `index` and `view` are int64 of shape [batch]: the sample's
    place in the training set and the number of its augmented view (0: not augmented, -1: a view nobody stored).
    """

    inputs: Any
    targets: Any
    outputs: Any
    task_loss: Tensor
    progress: float
    model: nn.Module
    index: Tensor | None = None
    view: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Compact:
    """A finalized model: plain module, what each of its tensors is on disk, and the edits that rebuild its shape.

    `model` is on the CPU in eval mode; `stored` has one entry per tensor; `edits` is JSON data.
    """

    model: nn.Module
    stored: dict[str, Stored]
    edits: list[Edit] = field(default_factory=list)

    def with_edits(self, edits: list[Edit]) -> Self:
        """The same with `edits` appended."""
        return replace(self, edits=[*self.edits, *edits])


class Method(nn.Module):
    """Base of every compression method: all hooks but `stage` are optional.

    Weights are changed by parametrizations registered in `attach`, so that their state is in the checkpoint by
    itself. A parametrization may define `store(stored: Stored) -> Stored`: what it makes of a tensor on disk.
    """

    stage: ClassVar[Stage]
    #: Names of the student's submodules whose outputs the method wants in `Step.features`.
    taps: tuple[str, ...] = ()

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Change `model` before the optimizer exists; may replace layers, never renames one."""
        return model

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Look at data once, before the first step: calibration, saliency, clustering. Skipped on resume."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the method's own learnables."""
        return []

    def task_weight(self, progress: float) -> float | Tensor:
        """Factor on the task loss, a tensor where it is learned; the factors of all methods are multiplied."""
        return 1.0

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Extra loss terms by name, already weighted."""
        return {}

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Act after an optimizer step; returns figures worth logging."""
        return {}

    def renewed(self) -> list[nn.Parameter]:
        """Own learnables that the last update gave new values: what an optimizer gathered on them before is void."""
        return []

    def revived(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters of which the last update gave some entries, a bool tensor, new values: the same for those."""
        return []

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """Why the method has had no effect though its schedule says it should have; None when all is well.

        Asked after each step until `settled` is True.
        """
        return None

    def settled(self, progress: float) -> bool:
        """Whether the schedule has asked for something by now, so that an effect can be expected."""
        return True

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """Turn the folded model into the deployed one: remove what is masked, freeze scales, fold norms."""
        return compact
