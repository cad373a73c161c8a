"""`BayesianBits`: how many bits each weight and input has is learned with the weights."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, final

from torch import Tensor, nn

from lightning_compress.core import select as selection
from lightning_compress.core.method import Compact, Method, Stage, Step
from lightning_compress.cost.macs import macs, macs_share
from lightning_compress.quantize.gates import GatedInput, GatedWeight, Gates
from lightning_compress.quantize.method import Quantize

_BITS = 8


@final
class BayesianBits(Method):
    """Learns 2, 4 or 8 bits for each weight and input, and which output channels go (arXiv 2005.07093).

    Gates are drawn at random in training and paid for: the loss gains `strength` times the sum, over weights and
    inputs, of their layer's share of the largest layer's multiply-accumulates times the expected bits 2 q_2 +
    4 q_2 q_4 + 8 q_2 q_4 q_8, where a q is the probability that a gate is open. All gates start with the logit
    `initial`. From progress `fix` on, a gate is open for good unless its probability of being zero is more than 0.34,
    and only weights and ranges are trained. A channel that goes stays as zeros, which saves bytes but no bit
    operations; with `prune=False` none does.

    `gate_lr` is the learning rate of the gates, `lr` that of the ranges (None: the optimizer's). A gate shuts at a
    logit of about -1: with Adam, whose steps are as long as the learning rate, `gate_lr` times the steps up to `fix`
    has to be several times the way there.

    Raises:
        ValueError: a setting out of range, no example, a codebook below with `prune=True`, or no layer matched.

    >>> import torch
    >>> model = BayesianBits().attach(nn.Sequential(nn.Linear(4, 2)), torch.ones(1, 4))
    >>> sorted(name for name, _ in model[0].input_quantizer.named_parameters())
    ['finer.logits', 'reach']
    """

    stage: ClassVar[Stage] = Stage.NUMERICS

    def __init__(
        self,
        strength: float = 0.01,
        *,
        fix: float = 0.7,
        prune: bool = True,
        initial: float = 6.0,
        gate_lr: float | None = None,
        lr: float | None = None,
        calibration_batches: int = 4,
        select: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if strength < 0 or not 0.0 < fix < 1.0:
            raise ValueError(f"BayesianBits: strength is from 0 up, fix inside (0, 1); got {strength=}, {fix=}")
        self.strength, self.fix, self.prune = strength, fix, prune
        self.gate_lr, self.lr = gate_lr, lr
        self.quantize = Quantize(
            _BITS,
            _BITS,
            weights=GatedWeight,
            activations=GatedInput,
            weight_options={"prune": prune, "initial": initial},
            activation_options={"initial": initial},
            calibration_batches=calibration_batches,
            lr=lr,
            select=select,
            exclude=exclude,
        )
        self._shares: dict[GatedWeight | GatedInput, float] = {}
        self._fixed = False

    def get_extra_state(self) -> dict[str, bool]:
        """Whether the gates are fixed."""
        return {"fixed": self._fixed}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Take it from the checkpoint."""
        self._fixed = state["fixed"]
        for gates in self._gates():
            gates.fixed = self._fixed

    def _gates(self) -> list[Gates]:
        return [gates for quantizer in self._shares for gates in quantizer.modules() if isinstance(gates, Gates)]

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put gated quantizers on the selected layers, and see what each layer costs."""
        if example is None:
            raise ValueError("BayesianBits needs example=, one batch of inputs, to count multiply-accumulates")
        weights = selection.weights(model, owner="BayesianBits")
        for name, weight in weights.items():
            if self.prune and weight.has_codebook:
                raise ValueError(f"BayesianBits: {name!r} has a codebook, which serves all channels; write prune=False")
        counts = macs(model, example)
        model, most = self.quantize.attach(model, example), max(counts.values())
        for name, count in counts.items():
            inputs = [part for part in model.get_submodule(name).modules() if isinstance(part, GatedInput)]
            self._shares.update(dict.fromkeys(inputs, count / most))
        for weight in weights.values():
            own = sum(counts[place.layer] * macs_share(place) for place in weight.places)
            gated = [part for part in weight.steps if isinstance(part, GatedWeight)]
            self._shares.update(dict.fromkeys(gated, own / most))
        return model

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Set the ranges from what other methods made of the weights, and from a few batches."""
        self.quantize.prepare(model, batches)

    def param_groups(self) -> list[dict[str, Any]]:
        """The gates and the ranges, free of weight decay."""
        found = []
        gates = [gates.logits for gates in self._gates()]
        for params, lr in ((gates, self.gate_lr), ([quantizer.reach for quantizer in self._shares], self.lr)):
            group = {"params": params, "weight_decay": 0.0}
            found.append(group if lr is None else {**group, "lr": lr})
        return found

    def loss(self, step: Step) -> dict[str, Tensor]:
        """What the gates cost; nothing once they are fixed."""
        total = step.task_loss.new_zeros(())
        for quantizer, share in [] if self._fixed else self._shares.items():
            total = total + share * quantizer.cost()
        return {"bits": self.strength * total}

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Fix the gates when it is time."""
        if progress >= self.fix and not self._fixed:
            for gates in self._gates():
                gates.fix()
            self._fixed = True
        return self.quantize.update(model, progress)

    def settled(self, progress: float) -> bool:
        """Quantization has begun with the first step."""
        return self.quantize.settled(progress)

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """Quantizers that are off, or inputs with an empty range."""
        return self.quantize.missing_effect(model, progress)

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """Fold batch norms into the scales, and put constants where quantizers were."""
        return self.quantize.finalize(compact, example)
