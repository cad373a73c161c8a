"""`Prune`: gradual removal of weights or channels during training."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

from torch import nn

from lightning_compress.core import lookup, select
from lightning_compress.core.method import Compact, Method, Stage
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.prune import allocate, channels, patterns, scores

_PATTERNS: dict[str, Callable[..., patterns.Pattern]] = {
    "unstructured": patterns.Unstructured,
    "channel": channels.Channel,
}


@final
class Prune(Method):
    """Removes the lowest-scored weights or channels along a schedule, and never gives one back.

    The axes are independent: `pattern` says what goes together ("unstructured" or "channel"), `score` how much a
    weight matters (a function of `prune/scores.py` by name, or a dotted path), `allocation` how the sparsity is
    spread ("uniform" or "overall", or a dotted path). Either `sparsity`, the share removed in [0, 1], or `threshold`,
    in standard deviations of each layer's weights (Han 2015, arXiv 1506.02626), is a number or a schedule of
    progress. Masks move every `every` optimizer steps and once more when the schedule has arrived. `round_to` keeps
    channel counts at a multiple. The gradual ramp is that of Zhu and Gupta (arXiv 1710.01878).

    Raises:
        ValueError: both or none of `sparsity` and `threshold`, a value out of range, or no layer matched.

    >>> from lightning_compress.core.schedule import Polynomial
    >>> model = Prune(Polynomial(last=0.9, end=0.7)).attach(nn.Linear(4, 2), None)
    >>> model.weight.shape
    torch.Size([2, 4])
    """

    stage: ClassVar[Stage] = Stage.SPARSITY

    def __init__(
        self,
        sparsity: float | Schedule | None = None,
        *,
        threshold: float | Schedule | None = None,
        pattern: str = "unstructured",
        score: str | Callable[..., Any] = "magnitude",
        allocation: str | Callable[..., Any] = "uniform",
        every: int = 10,
        round_to: int = 1,
        select: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if (sparsity is None) == (threshold is None):
            raise ValueError(f"Prune needs sparsity or threshold, one of them; got {sparsity=}, {threshold=}")
        if pattern not in _PATTERNS:
            raise ValueError(f"Prune: pattern must be one of {', '.join(_PATTERNS)}; got {pattern!r}")
        if every < 1 or round_to < 1:
            raise ValueError(
                f"Prune: every and round_to count steps and channels, from 1 up; got {every=}, {round_to=}"
            )
        self.amount = as_schedule(threshold if sparsity is None else sparsity)  # type: ignore[arg-type]
        self.by_threshold = sparsity is None
        for progress in (0.0, 1.0):
            _check_amount(self.amount(progress), self.by_threshold)
        self.pattern, self.every, self.round_to = pattern, every, round_to
        self.select, self.exclude = select, tuple(exclude)
        self.score = lookup.function(score, scores)
        self.allocation = lookup.function(allocation, allocate)
        self._calls = 0
        self._applied = 0.0
        self._asked = False
        self._pattern: patterns.Pattern | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """Steps counted and the amount the masks stand for."""
        return {"calls": self._calls, "applied": self._applied}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take them from the checkpoint."""
        self._calls, self._applied = state["calls"], state["applied"]

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put masks that keep everything on the selected layers."""
        layers = select.layers(model, owner="Prune", select=self.select, exclude=self.exclude)
        self._pattern = _PATTERNS[self.pattern](model, example, layers)
        if not self.by_threshold and self.amount(1.0) > 0 and not _removes(self._keep(1.0)):
            sizes = {name: score.numel() for name, score in self._pattern.scores(self.score).items()}
            raise ValueError(
                f"Prune would remove nothing: sparsity {self.amount(1.0)} with round_to={self.round_to} keeps all of "
                f"{sizes}; write a larger sparsity or a smaller round_to"
            )
        return model

    def _keep(self, progress: float) -> dict[str, Any]:
        assert self._pattern is not None, "attach comes first"
        ranked = self._pattern.scores(self.score)
        if self.by_threshold:
            return allocate.above(ranked, self.amount(progress))
        return self.allocation(ranked, self.amount(progress), self.round_to)  # type: ignore[no-any-return]

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Move the masks when it is time."""
        self._calls += 1
        wanted = self.amount(progress)
        arrived = wanted == self.amount(1.0)
        if wanted == self._applied or not (arrived or self._calls % self.every == 0):
            return {}
        assert self._pattern is not None
        keep = self._keep(progress)
        self._pattern.apply(keep)
        self._applied = wanted
        self._asked = self._asked or _removes(keep)
        return {"prune/amount": wanted}

    def settled(self, progress: float) -> bool:
        """Whether the masks were told to remove something, or the schedule has arrived and they should have been."""
        return self._applied > 0 and (self._asked or self._applied == self.amount(1.0))

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """All masks still full though the schedule asks for zeros."""
        assert self._pattern is not None
        if _removes(self._pattern.keep()):
            return None
        kind = "threshold" if self.by_threshold else "sparsity"
        return f"its schedule asks for {kind} {self._applied:.3g} and every mask still keeps everything"

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """Remove whole channels; single zeros stay in place."""
        assert self._pattern is not None, "attach comes first"
        return self._pattern.finalize(compact)


def _removes(keep: dict[str, Any]) -> bool:
    return any(not bool(kept.all()) for kept in keep.values())


def _check_amount(amount: float, by_threshold: bool) -> None:
    if by_threshold and amount < 0:
        raise ValueError(f"Prune: threshold counts standard deviations, from 0 up; got {amount}")
    if not by_threshold and not 0.0 <= amount < 1.0:
        raise ValueError(f"Prune: sparsity is the share removed, in [0, 1); got {amount}")
