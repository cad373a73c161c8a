"""`Quantize`: quantization of weights and activations, in training or after it."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import nn

from lightning_compress.core import select, surgery
from lightning_compress.core.method import Compact, Method, Stage
from lightning_compress.core.schedule import Schedule, as_schedule
from lightning_compress.core.stored import Stored
from lightning_compress.core.weight import Weight
from lightning_compress.quantize import batchnorm, bits, named, outputs, posttraining, seen, uniform
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer, on_weight
from lightning_compress.quantize.sensitivity import Sensitivity

#: Of what is added up: the stream of a residual net adds the rounding errors of all its blocks.
_OUTPUT_BITS = 8


@final
class Quantize(Method):
    """Fake-quantizes weights and layer inputs in training, and deploys what training computed (arXiv 1712.05877).

    Of a recurrent layer that is each of its weights and what comes in from outside, not what it hands itself.
    Bits are a number, a schedule of progress, a mapping from patterns of layer names to these (the first that is found
    in the name counts), or None for float; those of weights may be left to a `Sensitivity`. `weights` and `activations`
    name the quantizers (a key of quantize/named.py or a dotted path), and the `_options` are their arguments. `ends`
    gives the first and the last layer of the network so many bits, by uniform quantizers where the named ones cannot
    take them; `exclude=["<first>", "<last>"]` leaves them alone.

    Quantization begins at progress `start`; input ranges start from `calibration_batches` and, where they are observed,
    follow the batches until `freeze`. From `freeze_batchnorm` on, batch norms use their running statistics in training
    too. Learned steps and bounds are in a parameter group of their own with weight decay `decay` and learning rate
    `lr` (None: the optimizer's). A batch norm right after a quantized layer goes into its scales in the end.

    With `outputs`, what goes into additions, concatenations and averages has 8 bits too (quantize/outputs.py), so that
    a runtime computes these in integers; the quantizer of a layer with 8-bit inputs then sits where they come from.

    For trained weights there are `calibration`, which chooses the ranges of inputs, `equalize`, `adaround` (steps for
    each layer) and `correct_bias` (quantize/posttraining.py); with them a run of no epochs is enough.

    Raises:
        ValueError: bits or options that a quantizer does not take, nothing to quantize, or no layer matched.

    >>> model = Quantize(weight_bits=4, activation_bits=8).attach(nn.Sequential(nn.Linear(4, 2)), torch.ones(1, 4))
    >>> len(model[0].weight.unique()) <= 15
    True
    """

    stage: ClassVar[Stage] = Stage.NUMERICS

    def __init__(
        self,
        weight_bits: bits.Bits = 8,
        activation_bits: bits.Bits = 8,
        *,
        weights: str | Callable[..., WeightQuantizer] = "uniform",
        activations: str | Callable[..., InputQuantizer] = "observed",
        weight_options: named.Options = None,
        activation_options: named.Options = None,
        ends: int | None = None,
        outputs: bool = False,
        start: float = 0.0,
        freeze: float = 1.0,
        freeze_batchnorm: float = 1.0,
        calibration_batches: int = 4,
        calibration: str | seen.Choose = "min_max",
        equalize: bool = False,
        adaround: int = 0,
        correct_bias: bool = False,
        lr: float | None = None,
        decay: float | None = 0.0,
        select: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if weight_bits is None and activation_bits is None:
            raise ValueError("Quantize: weight_bits and activation_bits are both null; give one of them 1 to 8 bits")
        if outputs and activation_bits is None:
            raise ValueError("Quantize: outputs=True, but activation_bits is null; give it 1 to 8 bits")
        if calibration_batches < 1:
            raise ValueError(f"Quantize: calibration_batches must be at least 1, got {calibration_batches}")
        if not 0.0 <= start < 1.0 or not start <= freeze <= 1.0 or not 0.0 <= freeze_batchnorm <= 1.0:
            raise ValueError(
                "Quantize: start, freeze and freeze_batchnorm lie in [0, 1], freeze not before start, "
                f"got {start=}, {freeze=}, {freeze_batchnorm=}"
            )
        self._steps = posttraining.PostTraining(
            calibration, equalize=equalize, adaround=adaround, correct_bias=correct_bias
        )
        if self._steps.refines and (start > 0.0 or weight_bits is None):
            raise ValueError(f"Quantize: adaround and correct_bias need weight_bits and start=0; got {start=}")
        self._make_weight = named.maker("weights", weights, WeightQuantizer, weight_options)
        self._make_input = named.maker("activations", activations, InputQuantizer, activation_options)
        bits.check("weight_bits", weight_bits, self._make_weight)
        bits.check("activation_bits", activation_bits, self._make_input)
        bits.check("ends", ends, uniform.Uniform)
        self.weight_bits, self.activation_bits, self.ends, self.outputs = weight_bits, activation_bits, ends, outputs
        self.start, self.freeze, self.freeze_batchnorm = start, freeze, freeze_batchnorm
        self.calibration_batches, self.lr, self.decay = calibration_batches, lr, decay
        self.select, self.exclude = select, tuple(exclude)
        self._weights: dict[str, WeightQuantizer] = {}
        self._inputs: dict[str, InputQuantizer] = {}
        self._schedules: dict[str, dict[str, Schedule]] = {}
        self._pairs: dict[str, str] = {}
        self._readers: dict[str, list[str]] = {}
        self._bits_now: dict[tuple[str, str], int] = {}
        self._norms = batchnorm.FrozenNorms()
        self._active, self._observing = False, True
        self._renewed: list[nn.Parameter] = []

    def get_extra_state(self) -> dict[str, bool]:
        """Whether quantization has begun, observation has ended, and batch norms are frozen."""
        return {"active": self._active, "observing": self._observing, "frozen": self._norms.frozen}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Take it from the checkpoint."""
        self._switch(state["active"], state["observing"])
        self._norms.frozen = state["frozen"]
        self._bits_now.clear()

    def _switch(self, active: bool, observing: bool) -> None:
        self._active, self._observing = active, observing
        for quantizer in (*self._weights.values(), *self._inputs.values()):
            quantizer.active = active
        for quantizer in self._inputs.values():
            quantizer.observing = observing and (quantizer.observes or not active)

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put quantizers on the selected weights, and on the inputs of their layers."""
        weights = select.weights(model, owner="Quantize", select=self.select, exclude=self.exclude)
        layers = select.readers(weights.values())
        self._steps.even_out(model, example)
        if example is not None:
            self._pairs = batchnorm.pairs(model, example)
        ends = bits.at_ends(self.ends, weights, select.weights(model, owner="Quantize"))
        for kind, names in (("weight_bits", list(weights)), ("activation_bits", list(layers))):
            found = bits.of_layers(kind, getattr(self, kind), names)
            self._schedules[kind] = found | {name: as_schedule(ends[name]) for name in ends.keys() & found.keys()}
        self._put_on_weights(weights, ends)
        self._steps.check(model, self._weights)
        if self.outputs:
            self._put_on_outputs(model, example)
        for name in [name for name in layers if name in self._schedules["activation_bits"]]:
            make = named.able(self._make_input, ends.get(name), uniform.Observed)
            wanted = bits.at(self._schedules["activation_bits"][name], 0.0)
            self._inputs[name] = make(wanted).to(next(layers[name].parameters()).device)
            surgery.put_on_input(layers[name], self._inputs[name])
        if self.freeze_batchnorm < 1.0:
            self._norms.put_on(model)
        self._switch(active=self.start == 0.0, observing=True)
        return model

    def _put_on_weights(self, weights: dict[str, Weight], ends: dict[str, int]) -> None:
        for name, schedule in self._schedules["weight_bits"].items():
            make = named.able(self._make_weight, ends.get(name), uniform.Uniform)
            self._weights[name] = on_weight(weights[name], make(bits.at(schedule, 0.0)))
        if isinstance(self.weight_bits, Sensitivity):  # what it chooses is kept by the quantizers alone
            given = self._schedules["weight_bits"]
            self._schedules["weight_bits"] = {name: given[name] for name in ends.keys() & given.keys()}

    def _put_on_outputs(self, model: nn.Module, example: Any) -> None:
        """Put quantizers on outputs that need them, and let layers that have 8 bits all along read these."""
        schedules = self._schedules["activation_bits"]
        found = outputs.found(model, example, list(schedules))
        if not found:
            raise ValueError(
                "Quantize: outputs=True, but no module's output goes into an addition, a concatenation or an average; "
                "write outputs=False"
            )
        device = next(model.parameters()).device
        for name, layers in found.items():
            key = surgery.dotted(name, surgery.OUTPUT_CHILD)
            readers = [
                layer for layer in layers if {bits.at(schedules[layer], x) for x in (0.0, 1.0)} == {_OUTPUT_BITS}
            ]
            make = named.able(self._make_input, _OUTPUT_BITS, uniform.Observed) if readers else uniform.Observed
            self._inputs[key], self._readers[key] = make(_OUTPUT_BITS).to(device), readers
            surgery.put_on_output(model.get_submodule(name), self._inputs[key])
            for layer in readers:
                del schedules[layer]
            schedules[key] = as_schedule(_OUTPUT_BITS)

    @torch.no_grad()
    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Start anew from what other methods made of the weights; calibrate inputs on a few batches of the float model.

        Then rounding is learned and mean errors are corrected, where these were asked for.
        """
        active = self._active
        self._switch(active=False, observing=True)
        if isinstance(self.weight_bits, Sensitivity):
            self._choose(model, batches, self.weight_bits)
        self._start_weights(model)
        needed = self.calibration_batches if self._inputs or self._steps.refines else 0
        shown = [batch[0] for batch in itertools.islice(batches, needed)]
        if needed and not shown:
            raise ValueError("Quantize: no batch to calibrate on; expected the training data to yield at least one")
        self._steps.calibrate(model, list(self._inputs.values()), shown)
        reference = surgery.plain(model) if self._steps.refines else model
        self._switch(active=active, observing=True)
        self._steps.refine(model, reference, self._weights, {v: k for k, v in self._pairs.items()}, shown)

    def _choose(self, model: nn.Module, batches: Iterable[Any], wanted: Sensitivity) -> None:
        given, reads = (
            {name: bits.at(schedule, 1.0) for name, schedule in self._schedules[kind].items()}
            for kind in ("weight_bits", "activation_bits")
        )
        reads |= dict.fromkeys(itertools.chain.from_iterable(self._readers.values()), _OUTPUT_BITS)
        for name, chosen in wanted.choose(model, self._weights, batches, given=given, reads=reads).items():
            self._weights[name].set_bits(chosen)

    def _start_weights(self, model: nn.Module) -> None:
        weights = select.weights(model, owner="Quantize")
        for name, quantizer in self._weights.items():
            quantizer.start(weights[name].below(quantizer))

    def param_groups(self) -> list[dict[str, Any]]:
        """The learned steps, bounds and levels."""
        params = self._learnables()
        group = {"params": params, "lr": self.lr, "weight_decay": self.decay}
        return [{key: value for key, value in group.items() if value is not None}] if params else []

    def _learnables(self) -> list[nn.Parameter]:
        quantizers = (*self._weights.values(), *self._inputs.values())
        return [parameter for quantizer in quantizers for parameter in quantizer.learnables()]

    def renewed(self) -> list[nn.Parameter]:
        """What is learned, where quantization has just begun; where bits have changed, what they gave another size."""
        return self._renewed

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Follow the schedules and the batches' ranges."""
        self._renewed = []
        self._set_bits(progress)
        if progress >= self.start and not self._active:
            self._start_weights(model)
            for quantizer in self._inputs.values():
                quantizer.start(quantizer.range)
            self._switch(active=True, observing=True)
            self._renewed = self._learnables()
        if model.training:
            self._follow(progress)
        self._norms.frozen = self.freeze_batchnorm < 1.0 and progress >= self.freeze_batchnorm
        return {}

    def _set_bits(self, progress: float) -> None:
        for kind, quantizers in (("weight_bits", self._weights), ("activation_bits", self._inputs)):
            for name, schedule in self._schedules[kind].items():
                wanted = bits.at(schedule, progress)
                if self._bits_now.get((kind, name)) != wanted:
                    self._bits_now[kind, name] = wanted
                    self._renewed += bits.change(quantizers[name], wanted)

    def _follow(self, progress: float) -> None:
        seen.follow([quantizer for quantizer in self._inputs.values() if quantizer.observing])
        if progress >= self.freeze and self.freeze < 1.0:
            self._switch(active=self._active, observing=False)

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
            return f"the inputs of {', '.join(empty)} have an empty range: never called? Write None for their bits"
        return None

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """Fold batch norms into the scales, and put constants where quantizers were."""
        batchnorm.FrozenNorms.take_off(compact.model)
        for norm, into in self._pairs.items():
            if (weight := compact.stored.get(surgery.dotted(into, "weight"))) and batchnorm.can_fold(weight):
                compact = batchnorm.folded(compact, norm, into)
        stored = dict(compact.stored)
        here = {*dict(compact.model.named_modules()), *self._readers}  # pruning may have taken blocks away
        for name in [name for name in self._inputs if self._active and name in here]:
            child = self._inputs[name].fixed()
            for place in self._deploy(compact.model, name, child):
                stored |= {key: Stored(value) for key, value in child.state_dict(prefix=f"{place}.").items()}
        return Compact(compact.model.eval(), stored, compact.edits)

    def _deploy(self, model: nn.Module, name: str, child: nn.Module) -> list[str]:
        """Put a quantizer that is finished where it belongs; returns the names that it has."""
        layers, places = [name], []
        if name in self._readers:
            layers, places = self._readers[name], [name]
            surgery.put_on_output(model.get_submodule(name.rpartition(".")[0]), child)
        for layer in layers:
            surgery.put_on_input(model.get_submodule(layer), child)
        return places + [surgery.dotted(layer, surgery.INPUT_CHILD) for layer in layers]
