"""`Quantize`: quantization-aware training of weights and activations."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import parametrize

from lightning_compress.core import lookup, select, surgery
from lightning_compress.core.method import Compact, Method, Stage
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.stored import Stored
from lightning_compress.quantize import batchnorm, observers
from lightning_compress.quantize.quantizers import InputQuantizer, WeightQuantizer, set_ranges

Bits = int | Schedule | None


@final
class Quantize(Method):
    """Fake-quantizes weights and layer inputs in training, and deploys integer codes (arXiv 1712.05877).

    `weight_bits` and `activation_bits` are 2 to 8, a schedule of progress, or None for float. Weights are symmetric
    with a scale for each output channel unless `per_channel` or `symmetric` say otherwise; inputs are affine with one
    scale, whose range follows the batches by `observer` ("moving_average" or "min_max", or a dotted path) until
    `freeze`, and starts from `calibration_batches`. Quantization begins at progress `start`. `exclude=["<first>",
    "<last>"]` leaves the ends of the network alone. A batch norm right after a quantized layer goes into its scales
    when the model is finalized, where they are per channel and symmetric; elsewhere it stays a float operation.

    Raises:
        ValueError: bits out of range, nothing to quantize, or no layer matched.

    >>> model = Quantize(weight_bits=4, activation_bits=8).attach(nn.Sequential(nn.Linear(4, 2)), torch.ones(1, 4))
    >>> len(model[0].weight.unique()) <= 15
    True
    """

    stage: ClassVar[Stage] = Stage.NUMERICS

    def __init__(
        self,
        weight_bits: Bits = 8,
        activation_bits: Bits = 8,
        *,
        per_channel: bool = True,
        symmetric: bool = True,
        observer: str | Callable[..., Tensor] = "moving_average",
        momentum: float = 0.95,
        start: float = 0.0,
        freeze: float = 1.0,
        calibration_batches: int = 4,
        select: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if weight_bits is None and activation_bits is None:
            raise ValueError("Quantize: weight_bits and activation_bits are both null; give one of them 2 to 8 bits")
        if calibration_batches < 1:
            raise ValueError(f"Quantize: calibration_batches must be at least 1, got {calibration_batches}")
        if not 0.0 <= start < 1.0 or not 0.0 <= momentum < 1.0 or not start <= freeze <= 1.0:
            raise ValueError(
                f"Quantize: start, freeze and momentum lie in [0, 1], got {start=}, {freeze=}, {momentum=}"
            )
        self.weight_bits = _checked("weight_bits", weight_bits)
        self.activation_bits = _checked("activation_bits", activation_bits)
        self.axis, self.symmetric = (0 if per_channel else None), symmetric
        self.observer = lookup.function(observer, observers)
        self.momentum, self.start, self.freeze = momentum, start, freeze
        self.calibration_batches = calibration_batches
        self.select, self.exclude = select, tuple(exclude)
        self._weights: dict[str, WeightQuantizer] = {}
        self._inputs: dict[str, InputQuantizer] = {}
        self._pairs: dict[str, str] = {}
        self._bits_now: tuple[int | None, int | None] | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """Whether quantization has begun and observation has ended."""
        every = [*self._weights.values(), *self._inputs.values()]
        return {"active": bool(every and every[0].active), "observing": any(q.observing for q in self._inputs.values())}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        self._switch(state["active"], state["observing"])
        self._bits_now = None

    def _switch(self, active: bool, observing: bool) -> None:
        for quantizer in (*self._weights.values(), *self._inputs.values()):
            quantizer.active = active
        for quantizer in self._inputs.values():
            quantizer.observing = observing

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put quantizers on the selected layers' weights and inputs."""
        layers = select.layers(model, owner="Quantize", select=self.select, exclude=self.exclude)
        if example is not None:
            self._pairs = batchnorm.pairs(model, example)
        for name, layer in layers.items():
            weight = layer.weight
            assert isinstance(weight, Tensor)
            if self.weight_bits is not None:
                quantizer = WeightQuantizer(_bits(self.weight_bits, 0.0), axis=self.axis, symmetric=self.symmetric)
                self._weights[name] = quantizer.to(weight.device)
                parametrize.register_parametrization(layer, "weight", self._weights[name])
            if self.activation_bits is not None:
                self._inputs[name] = InputQuantizer(_bits(self.activation_bits, 0.0)).to(weight.device)
                surgery.put_on_input(layer, self._inputs[name])
        self._switch(active=self.start == 0.0, observing=True)
        return model

    @torch.no_grad()
    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Calibrate input ranges: the widest seen over a few batches of the float model."""
        if not self._inputs:
            return
        active = self._active
        self._switch(active=False, observing=True)
        quantizers = list(self._inputs.values())
        seen = []
        with surgery.evaluating(model):
            for quantizer in quantizers:
                quantizer.train()
            for _, batch in zip(range(self.calibration_batches), batches, strict=False):
                model(batch[0])
                seen.append(torch.stack([quantizer.seen for quantizer in quantizers]))
        if not seen:
            raise ValueError("Quantize: no batch to calibrate on; expected the training data to yield at least one")
        every = torch.stack(seen)
        set_ranges(quantizers, torch.stack([every[..., 0].amin(0), every[..., 1].amax(0)], dim=1))
        self._switch(active=active, observing=True)

    @property
    def _active(self) -> bool:
        return next(iter([*self._weights.values(), *self._inputs.values()])).active

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Follow the bit schedules and the batches' ranges."""
        if progress >= self.start and not self._active:
            self._switch(active=True, observing=True)
        self._set_bits(progress)
        if self._inputs and model.training:
            self._follow(progress)
        return {}

    def _set_bits(self, progress: float) -> None:
        weight_bits = None if self.weight_bits is None else _bits(self.weight_bits, progress)
        activation_bits = None if self.activation_bits is None else _bits(self.activation_bits, progress)
        if self._bits_now == (weight_bits, activation_bits):
            return
        self._bits_now = (weight_bits, activation_bits)
        for quantizers, bits in ((self._weights, weight_bits), (self._inputs, activation_bits)):
            for quantizer in quantizers.values():
                assert bits is not None
                quantizer.set_bits(bits)

    @torch.no_grad()
    def _follow(self, progress: float) -> None:
        quantizers = list(self._inputs.values())
        running = torch.stack([quantizer.range for quantizer in quantizers])
        if quantizers[0].observing:
            seen = torch.stack([quantizer.seen for quantizer in quantizers])
            if dist.is_available() and dist.is_initialized():
                widest = torch.stack([-seen[:, 0], seen[:, 1]])
                dist.all_reduce(widest, op=dist.ReduceOp.MAX)
                seen = torch.stack([-widest[0], widest[1]], dim=1)
            running = self.observer(running, seen, self.momentum)
        set_ranges(quantizers, running)
        if progress >= self.freeze and self.freeze < 1.0:
            self._switch(active=True, observing=False)

    def settled(self, progress: float) -> bool:
        """Whether quantization has begun."""
        return progress >= self.start

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """Quantizers that are off, or inputs with an empty range."""
        for what, quantizers in (("weight", self._weights), ("input", self._inputs)):
            off = [name for name, quantizer in quantizers.items() if not quantizer.active]
            if off:
                return f"the {what} quantizers of {', '.join(off)} are off though progress is past start={self.start}"
        empty = [name for name, quantizer in self._inputs.items() if bool(quantizer.range[0] == quantizer.range[1])]
        if empty:
            return f"the inputs of {', '.join(empty)} have an empty range: were these layers never called?"
        return None

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """Fold batch norms into the scales, and put constants where the observers were."""
        for norm, into in self._pairs.items():
            if batchnorm.can_fold(compact.stored[surgery.dotted(into, "weight")]):
                compact = batchnorm.folded(compact, norm, into)
        stored = dict(compact.stored)
        for name, quantizer in self._inputs.items() if self._active else []:
            child = quantizer.fixed()
            surgery.put_on_input(compact.model.get_submodule(name), child)
            for key, value in child.state_dict(prefix=surgery.dotted(name, f"{surgery.INPUT_CHILD}.")).items():
                stored[key] = Stored(value)
        return Compact(compact.model.eval(), stored, compact.edits)


def _checked(name: str, bits: Bits) -> Schedule | None:
    if bits is None:
        return None
    schedule = as_schedule(bits)
    for progress in (0.0, 1.0):
        if not 2 <= schedule(progress) <= 8:
            raise ValueError(f"Quantize: {name} must be 2 to 8, got {schedule(progress):g}; write null for float")
    return schedule


def _bits(schedule: Schedule, progress: float) -> int:
    return round(schedule(progress))
