"""Knowledge review: the student's deep layers, mixed into shallower ones, learn from each of the teacher's."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.distill.adapters import check_shapes, takes

_MOST_CHANNELS = 512


@takes(several=True)
@final
class Review(nn.Module):
    """Differences at four sizes between the teacher's layers and the student's, fused (Chen 2021, arXiv 2104.09044).

    Layers from shallow to deep. From the deepest on, each of the student's is brought to one width and mixed with what
    came from the deeper ones, by weights for each position that it learns; a 3x3 convolution of that faces the
    teacher's layer.

    >>> shapes = [(2, 4, 8, 8), (2, 8, 4, 4)]
    >>> maps = [torch.randn(shape) for shape in shapes]
    >>> Review(shapes, shapes)(maps, maps).shape
    torch.Size([])
    """

    def __init__(self, student: Sequence[Sequence[int]], teacher: Sequence[Sequence[int]]) -> None:
        super().__init__()
        for one, other in zip(student, teacher, strict=True):
            check_shapes(one, other)
            if len(one) != 4:
                raise ValueError(f"review takes maps [batch, channels, rows, columns]; got {list(one)}")
        middle = min(_MOST_CHANNELS, student[-1][1])
        last = len(student) - 1
        pairs = enumerate(zip(student, teacher, strict=True))
        self.fusions = nn.ModuleList(_Fusion(a[1], middle, b[1], deepest=place == last) for place, (a, b) in pairs)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The sum over layers."""
        deeper: Tensor | None = None
        losses = []
        for fusion, maps, wanted in reversed(list(zip(self.fusions, student, teacher, strict=True))):
            found, deeper = fusion(maps, deeper, wanted.shape[2:])
            losses.append(_at_four_sizes(found, wanted))
        return torch.stack(losses).sum()


@final
class _Fusion(nn.Module):
    def __init__(self, channels: int, middle: int, wanted: int, *, deepest: bool) -> None:
        super().__init__()
        bring, face = nn.Conv2d(channels, middle, 1, bias=False), nn.Conv2d(middle, wanted, 3, padding=1, bias=False)
        self.bring = nn.Sequential(bring, nn.BatchNorm2d(middle))
        self.face = nn.Sequential(face, nn.BatchNorm2d(wanted))
        self.weigh = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        for convolution in (bring, face):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, maps: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        mixed = self.bring(maps)
        if self.weigh is not None and deeper is not None:
            deeper = F.interpolate(deeper, mixed.shape[2:], mode="nearest")
            weights = self.weigh(torch.cat([mixed, deeper], 1))
            mixed = mixed * weights[:, :1] + deeper * weights[:, 1:]
        if mixed.shape[2:] != size:
            mixed = F.interpolate(mixed, tuple(size), mode="nearest")
        return self.face(mixed), mixed


def _at_four_sizes(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of the maps and of their averages over 4x4, 2x2 and 1x1 fields, each half the weight."""
    loss, weight, total = F.mse_loss(one, other), 1.0, 1.0
    for fields in (4, 2, 1):
        if fields < one.shape[2]:
            weight /= 2.0
            total += weight
            small, wanted = (F.adaptive_avg_pool2d(maps, fields) for maps in (one, other))
            loss = loss + weight * F.mse_loss(small, wanted)
    return loss / total
