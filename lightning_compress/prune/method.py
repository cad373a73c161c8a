"""`Prune`: gradual removal of weights or channels during training."""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lightning_compress.core import lookup, select
from lightning_compress.core.method import Compact, Method, Stage, Step
from lightning_compress.core.rng import rng_state, set_rng_state
from lightning_compress.core.schedule import Schedule
from lightning_compress.core.task import named_loss
from lightning_compress.core.weight import Weight
from lightning_compress.prune import allocate, amount, blocks, budget, channels, patterns, scores
from lightning_compress.prune.dynamics import Dynamics, Site, masks_in
from lightning_compress.prune.evidence import Evidence, asked, scored
from lightning_compress.prune.penalty import Penalty
from lightning_compress.prune.slopes import mean_of_ranks

_PATTERNS: dict[str, Callable[..., patterns.Pattern]] = {
    "unstructured": patterns.unstructured,
    "row": patterns.row,
    "channel": channels.Channel,
    "head": partial(channels.Channel, heads=True),
    "block": blocks.Block,
}
#: Patterns that are removed for real, and reach transposed convolutions too.
_REMOVED = ("channel", "head", "block")
_ALLOCATIONS: dict[str, Callable[..., Any]] = {
    "uniform": allocate.uniform,
    "overall": allocate.overall,
    "erdos_renyi": allocate.erdos_renyi,
    "erdos_renyi_kernel": allocate.erdos_renyi_kernel,
}


@final
class Prune(Method):
    """Removes the lowest-scored weights or channels along a schedule, and by itself never gives one back.

    The axes are independent. `pattern` says what goes together: "unstructured" (single weights), "row" (all of one
    output), "4x1" (blocks of so many rows and columns of the weight as a matrix), "2:4" (2 of every 4 inputs stay),
    all of which leave zeros in place, or what is removed for real: "channel", "head" (of attention), "block" (residual
    ones, which become identities), or a dotted path. `score` says how much a unit
    matters: a function of `prune/scores.py` by name, or a dotted path. `allocation` says how the sparsity is spread:
    "uniform" (the default), "overall", "erdos_renyi" or "erdos_renyi_kernel", or a dotted path.

    One of these says how much, a number or a schedule of progress: `sparsity`, the share of units removed in [0, 1];
    `threshold`, in standard deviations of each layer's weights (Han 2015, arXiv 1506.02626); or a budget, `macs`,
    `params` or `latency`, the share that stays of what the model that Prune is put on costs (prune/budget.py).
    `latency` is that of the network in floats, by `price(model, example)` (run/priced.py). `sparsity` may also be a
    mapping of regular expressions to these, one for every layer; with "2:4" it ends at 1 - 2/4. Masks move every
    `every` optimizer steps and once more when the schedule has arrived. `round_to` keeps channel counts at a multiple
    (8 for ONNX Runtime's fast depthwise kernels). The gradual ramp is that of Zhu and Gupta (arXiv 1710.01878).

    A score that looks at data takes the gradients of `loss(outputs, targets)` on `batches` of the training data before
    the first step, and on the step's own batch after it.

    `dynamics` changes what happens around a move: `Rewind` and `Soft` of `prune/dynamics.py`, `Regrow` of
    `prune/regrow.py`. `penalty`, one of `prune/penalty.py`, presses units towards zero before they go.

    Raises:
        ValueError: none or several of the amounts, a value out of range, an axis that does not fit another, a budget
            that cannot be met, or no layer matched.

    >>> from lightning_compress.core.schedule import Polynomial
    >>> model = Prune(Polynomial(last=0.9, end=0.7)).attach(nn.Linear(4, 2), None)
    >>> model.weight.shape
    torch.Size([2, 4])
    """

    stage: ClassVar[Stage] = Stage.SPARSITY

    def __init__(
        self,
        sparsity: float | Schedule | Mapping[str, float | Schedule] | None = None,
        *,
        threshold: float | Schedule | None = None,
        macs: float | Schedule | None = None,
        params: float | Schedule | None = None,
        latency: float | Schedule | None = None,
        price: budget.Pricing | None = None,
        pattern: str | Callable[..., patterns.Pattern] = "unstructured",
        score: str | Callable[..., Any] = "magnitude",
        allocation: str | Callable[..., Any] | None = None,
        every: int = 10,
        round_to: int = 1,
        select: str = "",
        exclude: Sequence[str] = (),
        batches: int = 1,
        loss: str | Callable[..., Any] = "cross_entropy",
        dynamics: Dynamics | None = None,
        penalty: Penalty | None = None,
    ) -> None:
        super().__init__()
        if every < 1 or round_to < 1 or batches < 1:
            raise ValueError(
                "Prune: every, round_to and batches count steps, channels and batches, from 1 up; "
                f"got {every=}, {round_to=}, {batches=}"
            )
        self.by, self.amounts = amount.asked(
            sparsity=sparsity, threshold=threshold, macs=macs, params=params, latency=latency
        )
        self.by_threshold, self.by_layer = self.by == "threshold", isinstance(sparsity, Mapping)
        self._price = price
        self.pattern, self.every, self.round_to, self.batches = pattern, every, round_to, batches
        self.select, self.exclude = select, tuple(exclude)
        self._make, own = self._parsed(pattern)
        if allocation is not None and (self.by_threshold or self.by_layer or own):
            decided = "threshold" if self.by_threshold else "sparsity by layer" if self.by_layer else repr(pattern)
            raise ValueError(f"Prune: {decided} decides how much goes where; leave out allocation={allocation!r}")
        self.score = lookup.function(score, scores)
        self.allocation = own or lookup.among(allocation or "uniform", _ALLOCATIONS, owner="Prune: allocation")
        dynamics = Dynamics() if dynamics is None else dynamics
        self.dynamics = lookup.instance(dynamics, Dynamics, owner="Prune: dynamics")
        self.penalty = None if penalty is None else lookup.instance(penalty, Penalty, owner="Prune: penalty")
        self.evidence = Evidence(self.score, named_loss(loss, owner="Prune: loss"), self.dynamics.scores)
        self._calls = 0
        self._applied = [0.0] * len(self.amounts)
        self._asked = False
        self._pattern: patterns.Pattern | None = None
        self._budget: budget.Budget | None = None
        self._place: dict[str, int] = {}
        self._told: dict[str, Any] = {}

    def _parsed(self, pattern: Any) -> tuple[Callable[..., patterns.Pattern], Callable[..., Any] | None]:
        """What makes the pattern, and the allocation that it brings."""
        if isinstance(pattern, int):
            raise ValueError(f"Prune: pattern is {pattern}, which YAML makes of 2:4 and the like; put it in quotes")
        if isinstance(pattern, str) and (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", pattern)):
            return partial(patterns.block, rows=int(found[1]), columns=int(found[2])), None
        if isinstance(pattern, str) and (found := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern)):
            kept, size = int(found[1]), int(found[2])
            ends = [schedule(1.0) for schedule in self.amounts.values()]
            if kept >= size or self.by != "sparsity" or self.by_layer or self.round_to > 1:
                raise ValueError(
                    f"Prune: pattern {pattern!r} keeps {kept} of every {size}, fewer than all, everywhere alike: "
                    "write one sparsity, no threshold or budget and no round_to"
                )
            if not math.isclose(ends[0], 1 - kept / size, abs_tol=1e-3):
                raise ValueError(
                    f"Prune: pattern {pattern!r} removes {size - kept} of every {size}, so its sparsity ends at "
                    f"{1 - kept / size:.4g}; got {ends[0]}"
                )
            return partial(patterns.in_groups, size=size), partial(allocate.in_groups, size=size)
        return lookup.among(pattern, _PATTERNS, owner="Prune: pattern"), None

    def get_extra_state(self) -> dict[str, Any]:
        """Steps counted and the amounts the masks stand for."""
        return {"calls": self._calls, "applied": [*self._applied]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take them from the checkpoint."""
        self._calls, self._applied = state["calls"], [*state["applied"]]

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put masks that keep everything on the selected layers."""
        choose: Callable[..., Mapping[str, Any]] = select.weights
        if self.pattern in _REMOVED:
            choose = partial(select.layers, kinds=channels.KINDS)
        found = choose(model, owner="Prune", select=self.select, exclude=self.exclude)
        earlier = {mask for _, mask in masks_in(model)}
        self._pattern = self._make(model, example, found)
        own = [(steps, mask) for steps, mask in masks_in(model) if mask not in earlier]
        self.dynamics.attach(Site(model, self._pattern, self.pattern, list(self.amounts.values()), own))
        self.evidence.attach(self._pattern)
        if self.by in amount.BUDGETS:
            self._budget = budget.Budget(self.by, model, example, self._pattern, self._price)
        if self.penalty is not None:
            self.penalty.attach(self._pattern)
        sizes = {name: kept.numel() for name, kept in self._pattern.keep().items()}
        if self.by_layer:
            place = {key: number for number, key in enumerate(self.amounts)}
            self._place = select.by_pattern(place, sizes, owner="Prune: sparsity")
        elif "shapes" in inspect.signature(self.allocation).parameters:
            self._told = {"shapes": {name: _shape(found[name]) for name in sizes}}
        if not self.by_threshold and max(self._wanted(1.0)) > 0 and not _removes(self._chosen(self._trial(), 1.0)):
            raise ValueError(
                f"Prune would remove nothing: {self.by} {self._shown(1.0)} with round_to={self.round_to} keeps all of "
                f"{sizes}; write a {'larger' if self.by == 'sparsity' else 'smaller'} {self.by} or a smaller round_to"
            )
        return model

    def _trial(self) -> dict[str, Tensor]:
        """Scores before there is any evidence: those of the weights, or zeros."""
        assert self._pattern is not None
        if self.evidence.asked:
            return {name: torch.zeros(kept.shape) for name, kept in self._pattern.keep().items()}
        state = rng_state()
        found = allocate.least_where_gone(scored(self.score, self._pattern.view(), {}), self._pattern.keep())
        set_rng_state(state)
        return found

    def _rank(self, model: nn.Module, score: Callable[..., Any]) -> dict[str, Tensor]:
        """What `score` says of each unit, alike on all ranks."""
        assert self._pattern is not None, "attach comes first"
        evidence = self.evidence.gather(model, self._pattern, self._calls, asked(score))
        found = scored(score, self._pattern.view(), evidence)
        return {name: mean_of_ranks(told.clone()) for name, told in found.items()}  # it may be a view of evidence

    def _wanted(self, progress: float) -> list[float]:
        return [schedule(progress) for schedule in self.amounts.values()]

    def _shown(self, progress: float) -> str:
        return ", ".join(f"{1 - gone if self.by in amount.BUDGETS else gone:.3g}" for gone in self._wanted(progress))

    def _chosen(self, ranked: dict[str, Tensor], progress: float) -> dict[str, Tensor]:
        wanted = self._wanted(progress)
        if self.by_threshold:
            return allocate.above(ranked, wanted[0])
        if self.by_layer:
            return allocate.given(ranked, {name: wanted[self._place[name]] for name in ranked}, self.round_to)

        def choose(sparsity: float) -> dict[str, Tensor]:
            return self.allocation(ranked, sparsity, self.round_to, **self._told)  # type: ignore[no-any-return]

        if self._budget is None:
            return choose(wanted[0])
        return self._budget.met(choose, 1 - wanted[0], ranked, self.round_to, last=1 - self._wanted(1.0)[0])

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Look at data, if the score does: masks that move before the first step do so by these batches."""
        if self.evidence.from_data:
            for inputs, targets, *_ in itertools.islice(batches, self.batches):
                self.evidence.show(inputs, targets)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """The penalty's term; the step's batch is kept until the masks have moved, if a score looks at data."""
        self.evidence.show(step.inputs, step.targets)
        assert self._pattern is not None, "attach comes first"
        return {} if self.penalty is None else self.penalty.loss(self._pattern, step.progress)

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Move the masks when it is time."""
        assert self._pattern is not None, "attach comes first"
        self._calls += 1
        self.evidence.step()
        self.dynamics.watch(progress)
        if self.penalty is not None and progress > 0:
            self.penalty.update(self._pattern, progress)
        wanted = self._wanted(progress)
        arrived, tick = wanted == self._wanted(1.0), self._calls % self.every == 0
        figures: dict[str, float] = {}
        if self.dynamics.due(progress, wanted != self._applied and (arrived or tick), tick):
            ranked = allocate.least_where_gone(self._rank(model, self.score), self._pattern.keep())
            keep = self._chosen(ranked, progress)
            self.dynamics.move(keep, progress)
            self._applied = wanted
            self._asked = self._asked or _removes(keep)
            named = zip(self.amounts, wanted, strict=True)
            figures = {f"prune/amount{key and '/' + key}": gone for key, gone in named}
        elif tick:
            figures = self.dynamics.stir(partial(self._rank, model), progress)
        self.evidence.forget()
        return figures

    def renewed(self) -> list[nn.Parameter]:
        """What the dynamics gave new values."""
        return self.dynamics.renewed()

    def revived(self) -> list[tuple[nn.Parameter, Tensor]]:
        """What the dynamics let return."""
        return self.dynamics.revived()

    def settled(self, progress: float) -> bool:
        """Whether the masks were told to remove something, or the schedule has arrived and they should have been."""
        return (
            self.dynamics.settled(progress)
            and max(self._applied) > 0
            and (self._asked or self._applied == self._wanted(1.0))
        )

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """All masks still full though the schedule asks for zeros, or moved by a movement that had not begun."""
        assert self._pattern is not None
        if self.evidence.blind:
            return "its score is movement and masks moved before a step: let its schedule begin later, as begin=0.1"
        if _removes(self._pattern.keep()):
            return self.dynamics.missing_effect()
        return f"its schedule asks for {self.by} {self._shown(progress)} and every mask still keeps everything"

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """Remove whole channels; single zeros stay in place."""
        assert self._pattern is not None, "attach comes first"
        return self._pattern.finalize(compact)


def _shape(found: Any) -> tuple[int, ...]:
    """That of a weight, or of the weight of a layer."""
    return tuple((found if isinstance(found, Weight) else Weight.of(found)).value.shape)


def _removes(keep: dict[str, Any]) -> bool:
    return any(not bool(kept.all()) for kept in keep.values())
