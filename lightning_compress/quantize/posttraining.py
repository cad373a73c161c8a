"""What `Quantize` does with the weights it is given before any training: the steps of post-training quantization."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn

from lightning_compress.core import lookup, select
from lightning_compress.quantize import adaround, calibrate, correction, equalize, seen
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer


@final
class PostTraining:
    """The steps that are switched on, in the order in which they are taken.

    `equalize` evens out the weights of linked layers, `calibration` names what chooses the ranges of inputs (a function
    of quantize/calibrate.py or a dotted path; a step that LSQ learns starts from the mean instead), `adaround` is the
    number of steps that learn the rounding of each layer's weights, and `correct_bias` takes the mean error out of each
    layer.

    Raises:
        ValueError: no such function, or a negative number of steps.

    >>> PostTraining("entropy").refines
    False
    """

    def __init__(
        self,
        calibration: str | seen.Choose = "min_max",
        *,
        equalize: bool = False,
        adaround: int = 0,
        correct_bias: bool = False,
    ) -> None:
        if adaround < 0:
            raise ValueError(f"Quantize: adaround is a number of steps, 0 for none; got {adaround}")
        self._choose = None if calibration == "min_max" else lookup.function(calibration, calibrate)
        self._equalize, self._adaround, self._correct_bias = equalize, adaround, correct_bias

    @property
    def refines(self) -> bool:
        """Whether weights or biases are fitted to data."""
        return bool(self._adaround or self._correct_bias)

    def even_out(self, model: nn.Module, example: Any) -> None:
        """Equalise the float network, before it has quantizers."""
        if self._equalize:
            equalize.equalize(model, example)

    def check(self, model: nn.Module, weights: Mapping[str, WeightQuantizer]) -> None:
        """See that the quantizers can be refined.

        Raises:
            ValueError: they cannot.
        """
        places = select.weights(model, owner="Quantize")
        for name in weights if self._adaround else ():
            adaround.check(name, places[name], weights[name])

    def calibrate(self, model: nn.Module, quantizers: Sequence[InputQuantizer], shown: Sequence[Any]) -> None:
        """Let quantizers of inputs, which are observing and not active, start from what they see."""
        if quantizers:
            for quantizer, row in zip(quantizers, seen.ranges(model, quantizers, shown, self._choose), strict=True):
                quantizer.start(row)
                quantizer.seen.copy_(row)  # what is followed next is this, not the last batch once more

    def refine(
        self,
        model: nn.Module,
        reference: nn.Module,
        weights: Mapping[str, WeightQuantizer],
        norms: Mapping[str, str],
        shown: Sequence[Any],
    ) -> None:
        """Fit the quantized network's rounding and biases to the float network `reference`."""
        if self._adaround:
            adaround.adaround(model, reference, weights, shown, self._adaround)
        if self._correct_bias:
            found = [weight for name, weight in select.weights(model, owner="Quantize").items() if name in weights]
            places = [place for weight in found for place in weight.places]
            names = [place.layer for place in places if isinstance(place.module, select.WEIGHTED)]
            correction.correct(model, reference, names, norms, shown)
