"""`Freeze`: layers whose outputs jump most when their quantized weights move are trained no further (PROFIT)."""

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import functional_call
from torch.nn.utils import parametrize

from lightning_compress.core import surgery
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.select import WEIGHTED
from lightning_compress.quantize.base import WeightQuantizer
from lightning_compress.quantize.correction import by_channel


def divergence(after: Tensor, before: Tensor) -> float:
    """How far outputs [numbers, channels] are from what they were: Kullback and Leibler's, the mean over channels.

    Each channel is taken as Gaussian. One that has no spread, before or after, says nothing, and none counts for more
    than 1, so that a single dead one does not outweigh the others.

    >>> divergence(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
    0.5
    """
    after, before = after.double(), before.double()
    spread, old = after.var(0, correction=0), before.var(0, correction=0)
    ratio, moved = spread / old, after.mean(0) - before.mean(0)
    found = 0.5 * (ratio - 1.0 - ratio.log() + moved.square() / old)
    found = found[(spread > 0) & (old > 0)].clamp(max=1.0)
    return float(found.sum()) / max(1, len(found))


@final
class Freeze(Method):
    """Progressive freezing of PROFIT (Park and Yoo 2020, arXiv 2008.04693): put it before `Quantize`.

    The run from progress `start` on has `stages` of the same length. In the first all layers with quantized weights are
    trained, in the last but one of `stages` shares of them is frozen, weights, biases and learned steps alike, those
    first whose outputs the steps of training disturbed most: every `every` steps, the divergence between what a layer
    makes of its input with the weights before the step and after it is measured in eval mode, and added up. Batch norms
    and the quantizers of inputs go on, and so do recurrent layers and embeddings.

    Raises:
        ValueError: a setting out of range, a `Quantize` before it, or nothing to freeze.

    >>> Freeze(stages=3, start=0.4).stage_at(0.65)
    1
    """

    stage: ClassVar[Stage] = Stage.NUMERICS

    def __init__(self, stages: int = 3, *, start: float = 0.5, every: int = 10) -> None:
        super().__init__()
        if stages < 2 or every < 1 or not 0.0 <= start < 1.0:
            raise ValueError(
                "Freeze: stages are at least 2, every counts steps from 1 up, start lies in [0, 1); "
                f"got {stages=}, {every=}, {start=}"
            )
        self.stages, self.start, self.every = stages, start, every
        self._calls = 0
        self._felt: dict[str, float] = {}
        self._frozen: list[str] = []
        self._layers: dict[str, Any] = {}
        # Between the forward pass and the end of a step only: what is put back, and what is compared on which inputs.
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        self._before: dict[str, Any] = {}
        self._inputs: Any = None

    def get_extra_state(self) -> dict[str, Any]:
        """Steps counted, what was measured of each layer, and which are frozen."""
        return {"calls": self._calls, "felt": dict(self._felt), "frozen": [*self._frozen]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take them from the checkpoint."""
        self._calls, self._felt, self._frozen = state["calls"], dict(state["felt"]), [*state["frozen"]]

    def stage_at(self, progress: float) -> int:
        """The stage that training is in, from 0 on."""
        return max(0, min(self.stages - 1, int((progress - self.start) / (1.0 - self.start) * self.stages)))

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Nothing to put on; see that bits which change do so after a frozen step was put back, and are kept."""
        if _quantized(model):
            raise ValueError("Freeze: the weights are quantized already; put it before Quantize: [Freeze, Quantize]")
        return model

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """See that there will be something to freeze; the data are not looked at."""
        self._find(model)

    def _find(self, model: nn.Module) -> dict[str, Any]:
        if not self._layers:
            self._layers = _quantized(model)
            if len(self._layers) < 2:
                raise ValueError(
                    f"Freeze: expected 2 layers with quantized weights or more, of which some are frozen; there are "
                    f"{len(self._layers)}: put a Quantize with weight_bits after it, or leave Freeze out"
                )
        return self._layers

    @torch.no_grad()
    def loss(self, step: Step) -> dict[str, Tensor]:
        """No term: the moment before the optimizer's step, to remember what is about to change."""
        layers = self._find(step.model)
        self._held = [(parameter, parameter.clone()) for parameter in self._still()]
        measured = step.progress >= self.start and self.stage_at(step.progress) < self.stages - 1
        if measured and (self._calls + 1) % self.every == 0:
            free = {name: layer for name, layer in layers.items() if name not in self._frozen}
            self._before = {name: surgery.plain(layer) for name, layer in free.items() if _quantizer(layer).active}
            self._inputs = step.inputs
        return {}

    def _still(self) -> list[nn.Parameter]:
        """Parameters of frozen layers; one that another layer has too, a codebook's, waits for that."""
        frozen, free = {}, set()
        for name, layer in self._layers.items():
            own = [*layer.parameters(recurse=False), *layer.parametrizations.parameters()]
            if name in self._frozen:
                frozen.update(dict.fromkeys(own))
            else:
                free.update(own)
        return [parameter for parameter in frozen if parameter not in free]

    @torch.no_grad()
    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Put frozen layers back to where they were; measure; freeze the next share when its stage begins."""
        self._calls += 1
        for parameter, held in self._held:
            parameter.copy_(held)
        if self._before:
            self._measure(model)
        self._held, self._before, self._inputs = [], {}, None
        wanted = len(self._find(model)) * self.stage_at(progress) // self.stages
        if wanted <= len(self._frozen) or not self._felt:
            return {}
        free = [name for name in self._layers if name not in self._frozen]
        free.sort(key=lambda name: -self._felt.get(name, 0.0))
        self._frozen += free[: wanted - len(self._frozen)]
        return {"freeze/layers": float(len(self._frozen))}

    def _measure(self, model: nn.Module) -> None:
        """Add up how far each free layer's outputs have moved with the step, on all ranks."""
        found: dict[str, float] = {}

        def compare(name: str, layer: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            twin = self._before[name]
            after = functional_call(twin, {"weight": layer.weight}, (args[0],))  # type: ignore[dict-item]
            found[name] = divergence(by_channel(twin, after), by_channel(twin, twin(args[0])))

        after = {name: partial(compare, name) for name in self._before}
        surgery.watched(model, self._inputs, nullcontext(), before={}, after=after)
        values = torch.tensor(list(found.values()), device=next(model.parameters()).device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
        for name, value in zip(found, values.tolist(), strict=True):
            self._felt[name] = self._felt.get(name, 0.0) + value

    def settled(self, progress: float) -> bool:
        """Whether the last stage has begun."""
        return self.stage_at(progress) == self.stages - 1

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """Nothing was frozen."""
        if self._frozen:
            return None
        return (
            f"no layer was measured between start={self.start} and the last stage: give it more steps, or a smaller "
            f"every than {self.every}, and let Quantize start before it"
        )


def _quantizer(layer: Any) -> Any:
    """What quantizes the weight of a layer, None where nothing does."""
    stack = layer.parametrizations.weight if parametrize.is_parametrized(layer, "weight") else ()
    return next((step for step in stack if isinstance(step, WeightQuantizer)), None)


def _quantized(model: nn.Module) -> dict[str, Any]:
    """Layers with quantized weights."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHTED)}
    return {name: layer for name, layer in layers.items() if _quantizer(layer) is not None}
