"""The two places a quantizer sits: on a weight (a parametrization) and on a layer's input (a child of the layer)."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.stored import Stored, along
from lightning_compress.core.weight import Weight
from lightning_compress.quantize import affine

#: Share of a range that is the last batch's, while a quantizer waits for its start.
_NEWS = 0.05


def at_rest(x: Tensor, learnables: list[nn.Parameter]) -> Tensor:
    """`x` as it is; learnables get a gradient of zero, because under DDP each parameter has to be part of each step.

    >>> at_rest(torch.ones(2), [])
    tensor([1., 1.])
    """
    for learnable in learnables:
        x = x + 0.0 * learnable.sum()
    return x


def rows(weight: Tensor, axis: int | None) -> Tensor:
    """What shares a scale, along the last dimension: [numbers] or, for each entry along `axis`, [entries, numbers].

    >>> rows(torch.ones(4, 3, 2), 0).shape, rows(torch.ones(4, 3), None).shape
    (torch.Size([4, 6]), torch.Size([12]))
    """
    flat = weight.flatten() if axis is None else weight.movedim(axis, 0).flatten(1)
    return flat.contiguous()  # sums of numbers that lie in another order end with other last bits


def extremes(x: Tensor) -> Tensor:
    """Minimum and maximum, [2], read in the order in which the numbers lie: any other order costs a copy.

    >>> extremes(torch.tensor([[1.0, -2.0]]))
    tensor([-2.,  1.])
    """
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return torch.stack(torch.aminmax(x.permute(order)))


def mean_magnitude(values: Tensor) -> Tensor:
    """Mean of |values| along the last dimension, zeros left out: those of a mask say nothing of the others.

    >>> mean_magnitude(torch.tensor([0.0, -1.0, 3.0]))
    tensor(2.)
    """
    return values.abs().sum(-1) / values.sign().abs().sum(-1).clamp_min(1.0)


@torch.no_grad()
def put(module: nn.Module, name: str, value: Tensor) -> None:
    """Make a parameter of a module, or set the one that is there.

    >>> layer = nn.Linear(1, 1)
    >>> put(layer, "bias", torch.tensor([2.0]))
    >>> layer.bias.tolist()
    [2.0]
    """
    if name in module._parameters:
        module.get_parameter(name).copy_(value)
    else:
        module.register_parameter(name, nn.Parameter(value))


class _Coded(nn.Module):
    """Lowest and highest code as buffers, so that bits may change during training without a recompilation."""

    #: Numbers of bits that the quantizer can take.
    fewest: ClassVar[int] = 1
    most: ClassVar[int] = 8

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, kind: affine.Kind) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self._set_codes(bits, kind)
        #: While False the quantizer lets everything through as it is.
        self.active = True

    def _set_codes(self, bits: int, kind: affine.Kind) -> None:
        if not self.fewest <= bits <= self.most:
            span = f"{self.fewest} to {self.most}" if self.fewest < self.most else f"exactly {self.most}"
            raise ValueError(f"{type(self).__name__} takes {span} bits, got {bits}")
        low, high = affine.code_range(bits, kind)
        self.low.fill_(low)
        self.high.fill_(high)

    @property
    def bits(self) -> int:
        """Number of bits now."""
        return round(float(self.high - self.low)).bit_length()

    def learnables(self) -> list[nn.Parameter]:
        """What the optimizer trains, in a group of its own."""
        return list(self.parameters())


class WeightQuantizer(_Coded):
    """Base of the quantizers of weights.

    A subclass says what the weight becomes in `quantize`, bit for bit the value of what `encode` makes of it on disk;
    both work in float32. Statistics are taken from the weight as it is, learnables made in `start`. `axis` is the
    dimension whose entries have a scale each, None where one scale serves all.
    """

    #: Whether a weight of zero stays exactly zero; if not, a mask below acts once more on top.
    exact_zero: bool = True
    axis: int | None = None
    group_size: int | None = None

    def __init__(self, bits: int, kind: affine.Kind) -> None:
        super().__init__(bits, kind)
        self.kind = kind

    def set_bits(self, bits: int) -> None:
        """Change the number of bits, in place."""
        self._set_codes(bits, self.kind)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """Make the learnables from the weight that training starts from, or set them anew."""

    def quantize(self, weight: Tensor) -> Tensor:
        """The weight as it will be deployed, with the gradient to train it; of the dtype and shape of `weight`."""
        raise NotImplementedError

    def encode(self, stored: Stored) -> Stored:
        """The tensor `stored.value` (float32) as codes."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The quantized weight, or the weight itself while the quantizer is not active."""
        return self.quantize(weight) if self.active else at_rest(weight, self.learnables())

    @torch.no_grad()
    def store(self, stored: Stored) -> Stored:
        """A quantized tensor on disk; of a tensor that chooses among levels, the levels are quantized."""
        if not self.active:
            return stored
        twin = copy.deepcopy(self).cpu().float().eval()
        coded = twin.encode(stored)
        return coded if stored.levels is None else _on_levels(stored, coded)


def _on_levels(stored: Stored, coded: Stored) -> Stored:
    """Choices among the levels that the codes of each weight make of the level it had."""
    assert stored.codes is not None
    assert stored.levels is not None
    assert coded.codes is not None
    assert coded.scale is not None
    assert coded.scale.dim() == 0, "over a codebook a quantizer has one scale"
    if coded.levels is not None:
        centred = coded.levels[coded.codes.long()]
    else:
        assert coded.zero_point is not None
        centred = (coded.codes - coded.zero_point).float()
    index, blocks = stored.codes.long(), centred.reshape(*stored.codes.shape, *stored.levels.shape[1:])
    if stored.mask is not None and stored.levels.dim() == 1:
        index, blocks = index[stored.mask], blocks[stored.mask]  # a masked weight has a code that means nothing
    levels = torch.zeros_like(stored.levels)
    levels[index] = blocks
    return stored.chosen(stored.codes, levels, coded.scale)


class InputQuantizer(_Coded):
    """Base of the quantizers of a layer's first input: one scale, and zero on the grid.

    While `observing` in training, `seen` takes down the batch's minimum, maximum and mean magnitude; whoever owns the
    quantizer makes a `range` of what was seen, after the optimizer step, so that the forward pass needs no
    communication between ranks, and hands it to `start`. `observes` says whether that goes on after the start. Inputs
    that are never negative have codes from 0 on, the others codes of the kind `signed`.
    """

    observes: ClassVar[bool] = False
    signed: affine.Kind = "affine"
    range: Tensor
    seen: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits, "affine")
        self.register_buffer("range", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(3))
        self.observing = True

    @torch.no_grad()
    def note(self, x: Tensor) -> None:
        """Take down what was seen of a batch."""
        self.seen[:2].copy_(extremes(x))
        self.seen[2:].copy_(x.abs().mean())

    @torch.no_grad()
    def start(self, range: Tensor) -> None:
        """Set range, codes and learnables from what was seen (minimum, maximum, mean magnitude)."""
        self.range.copy_(range)
        self._set_codes(self.bits, self.signed if float(range[0]) < 0 else "affine")

    def set_bits(self, bits: int) -> None:
        """Change the number of bits, in place."""
        self._set_codes(bits, self.signed if float(self.low) < 0 else "affine")

    @staticmethod
    @torch.no_grad()
    def follow(quantizers: Sequence[Any], seen: Tensor) -> None:
        """Let the ranges of quantizers of this class follow a batch: `seen` has a row of three for each.

        This one is for ranges that are still waiting for the start.
        """
        torch._foreach_lerp_([quantizer.range for quantizer in quantizers], list(seen.unbind()), _NEWS)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and whole-number zero point (float) as they are now, 0-dim."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """The input as its codes stand for it, with the gradient to train with."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The quantized input; in training its range may be noted."""
        if self.training and self.observing:
            self.note(x.detach())
        return self.quantize(x) if self.active else at_rest(x, self.learnables())

    @torch.no_grad()
    def fixed(self) -> FixedQuantizer:
        """The quantizer as it is deployed: constants only."""
        twin = copy.deepcopy(self).cpu().float()
        scale, zero_point = twin.qparams()
        low, high = round(float(self.low)), round(float(self.high))
        return FixedQuantizer(scale.clone(), zero_point.to(torch.int32), low, high)


def spread(values: Tensor, weight: Tensor, axis: int | None, group_size: int | None = None) -> Tensor:
    """Scales as they broadcast over `weight`: 0-dim, along `axis`, or [rows, groups] along dim 1.

    >>> spread(torch.tensor([[1.0, 2.0]]), torch.ones(1, 3), 0, group_size=2)
    tensor([[1., 1., 2.]])
    """
    if group_size is None:
        return along(values, axis, weight.dim())
    wide = values.repeat_interleave(group_size, dim=1)[:, : weight.shape[1]]
    return wide.reshape(*wide.shape, *[1] * (weight.dim() - 2))


def on_weight(weight: Weight, quantizer: WeightQuantizer) -> WeightQuantizer:
    """Put a quantizer on a weight, above what is there, and a mask once more above it where it must be.

    >>> from lightning_compress.quantize.uniform import Uniform
    >>> layer = nn.Linear(2, 2)
    >>> on_weight(Weight.of(layer), Uniform(4)) is layer.parametrizations.weight[0]
    True
    """
    value = weight.value.detach()
    if weight.has_codebook:
        quantizer.axis, quantizer.group_size = None, None  # its levels are quantized, and serve every channel
    quantizer.to(value.device).start(value)
    weight.put(quantizer)
    for mask in [] if quantizer.exact_zero else weight.masks:
        weight.put(mask)
    return quantizer
