"""What calibration shows of each quantizer's input: the range of every batch, and a histogram over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lightning_compress.core import surgery
from lightning_compress.core.inputs import call
from lightning_compress.quantize.base import InputQuantizer

#: As many as TensorRT counts.
_BINS = 2048


@final
@dataclass(frozen=True)
class Seen:
    """What one input was in calibration, on the CPU in float64.

    `batches` is [number, 2], the least and the greatest of each batch; `counts` [bins] says how many numbers fell into
    each of the even bins from `low` to `high`, a range that holds zero.
    """

    batches: Tensor
    counts: Tensor
    low: float
    high: float

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / len(self.counts)

    @property
    def centres(self) -> Tensor:
        """The middle of each bin."""
        return self.low + self.width * (torch.arange(len(self.counts), dtype=torch.float64) + 0.5)


Choose = Callable[[Seen, int], tuple[float, float]]


def pooled(seen: Tensor) -> Tensor:
    """What was seen in all batches or on all ranks ([number, layers, 3]): least minimum, greatest maximum, mean.

    >>> pooled(torch.tensor([[[-1.0, 2.0, 1.0]], [[0.0, 3.0, 2.0]]]))
    tensor([[-1.0000,  3.0000,  1.5000]])
    """
    return torch.stack([seen[..., 0].amin(0), seen[..., 1].amax(0), seen[..., 2].mean(0)], dim=1)


@torch.no_grad()
def follow(quantizers: Sequence[InputQuantizer]) -> None:
    """Let the ranges of quantizers follow what they, and their twins on other ranks, saw of the last batch."""
    if not quantizers:
        return
    found = torch.stack([quantizer.seen for quantizer in quantizers])
    if dist.is_available() and dist.is_initialized():
        ranks = [torch.empty_like(found) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, found)
        found = pooled(torch.stack(ranks))
    for kind in dict.fromkeys(type(quantizer) for quantizer in quantizers):
        rows = [number for number, quantizer in enumerate(quantizers) if type(quantizer) is kind]
        kind.follow([quantizers[number] for number in rows], found[rows])


@torch.no_grad()
def ranges(
    model: nn.Module, quantizers: Sequence[InputQuantizer], inputs: Sequence[Any], choose: Choose | None
) -> Tensor:
    """The range and the mean magnitude that each quantizer starts from, [quantizers, 3], from what `inputs` make of it.

    The quantizers have to be observing and not active. Without `choose` a range is the widest of the batches', and the
    model runs once over the inputs; else `choose` is told the highest code too, and the model runs twice.
    """
    history = []
    with surgery.evaluating(model):
        for quantizer in quantizers:
            quantizer.train()
        for batch in inputs:
            call(model, batch)
            history.append(torch.stack([quantizer.seen for quantizer in quantizers]))
        batches = torch.stack(history)
        found = pooled(batches)
        if choose is None:
            return found
        wide = torch.stack([found[:, 0].clamp(max=0.0), found[:, 1].clamp(min=0.0)], dim=1).double().cpu()
        counts = _histograms(model, quantizers, inputs, wide)
    for row, (low, high) in enumerate(wide.tolist()):
        if high > low:
            seen = Seen(batches[:, row, :2].double().cpu(), counts[row], low, high)
            found[row, :2] = torch.tensor(choose(seen, round(float(quantizers[row].high - quantizers[row].low))))
    return found


def _histograms(model: nn.Module, quantizers: Sequence[InputQuantizer], inputs: Sequence[Any], wide: Tensor) -> Tensor:
    """Counts [quantizers, bins] of what came to each quantizer, over its row of `wide`."""
    counts = torch.zeros(len(quantizers), _BINS, dtype=torch.float64)

    def note(row: int, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        low, high = wide[row].tolist()
        if high > low:
            x = args[0].detach().float().clamp(low, high)
            counts[row] += torch.histc(x, _BINS, low, high).double().cpu()

    handles = [q.register_forward_pre_hook(partial(note, row)) for row, q in enumerate(quantizers)]
    try:
        for batch in inputs:
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return counts
