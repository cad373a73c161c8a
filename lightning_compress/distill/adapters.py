"""From the student's features to the teacher's width, and what a loss says of the features it takes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = TypeVar("Loss", bound=Callable[..., Any])


@final
@dataclass(frozen=True)
class Takes:
    """What a loss on features takes: one layer's or `several` layers', and how the student's are brought to size.

    `adapter`: "never", when any widths do; "always"; "norm", always and with batch norm; "fitting", where widths
    differ, which holds for a loss that says nothing.
    """

    adapter: Literal["never", "always", "norm", "fitting"] = "fitting"
    several: bool = False


def takes(
    *, adapter: Literal["never", "always", "norm", "fitting"] = "fitting", several: bool = False
) -> Callable[[Loss], Loss]:
    """Note on a loss what it takes.

    >>> taken(takes(adapter="never")(lambda student, teacher: 0.0)).adapter
    'never'
    """

    def note(loss: Loss) -> Loss:
        loss.takes = Takes(adapter, several)  # type: ignore[attr-defined]
        return loss

    return note


def taken(loss: Callable[..., Any]) -> Takes:
    """What `loss`, a function or a partial one, takes."""
    found: Takes = getattr(loss.func if isinstance(loss, partial) else loss, "takes", Takes())
    return found


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the rows and columns of the smaller map: the larger one is averaged. What is no map stays.

    >>> one, other = same_size(torch.ones(1, 3, 8, 8), torch.ones(1, 5, 4, 4))
    >>> one.shape, other.shape
    (torch.Size([1, 3, 4, 4]), torch.Size([1, 5, 4, 4]))
    """
    if student.dim() != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    rows, columns = (min(sizes) for sizes in zip(student.shape[2:], teacher.shape[2:], strict=True))
    one, other = (F.adaptive_avg_pool2d(maps, (rows, columns)) for maps in (student, teacher))
    return one, other


def check_shapes(student: Sequence[int], teacher: Sequence[int], *, texts: bool = False) -> None:
    """See that both are [batch, channels, rows, columns], or [batch, features].

    With `texts` [batch, positions, features] will do as well.

    Raises:
        ValueError: they are not.

    >>> check_shapes((8, 16), (8, 64))
    """
    if len(student) != len(teacher) or len(student) not in ((2, 3, 4) if texts else (2, 4)):
        also = ", both [batch, positions, features]" if texts else ""
        raise ValueError(
            f"expected both [batch, channels, rows, columns]{also} or both [batch, features]; got the student's "
            f"{list(student)} and the teacher's {list(teacher)}: choose modules that put out the same kind"
        )


def pointwise(student: Sequence[int], width: int, *, bias: bool = True) -> nn.Module:
    """A 1x1 convolution, or a linear layer, from features of the student's shape to `width` channels.

    >>> pointwise((8, 16, 4, 4), 32)(torch.ones(2, 16, 4, 4)).shape
    torch.Size([2, 32, 4, 4])
    """
    if len(student) == 4:
        return nn.Conv2d(student[1], width, 1, bias=bias)
    return nn.Linear(student[-1], width, bias=bias)


def _width(shape: Sequence[int]) -> int:
    return shape[-1] if len(shape) == 3 else shape[1]


def batch_norm(shape: Sequence[int], width: int) -> nn.Module:
    """A batch norm over `width` channels for features with as many axes as `shape`."""
    return nn.BatchNorm2d(width) if len(shape) == 4 else nn.BatchNorm1d(width)


def adapter(loss: Callable[..., Any], student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    """What brings the student's features to the teacher's width for `loss`; nothing where it need not.

    >>> adapter(lambda student, teacher: 0.0, (8, 16), (8, 16))
    Identity()
    """
    when, width = taken(loss).adapter, _width(teacher)
    if when == "never" or (when == "fitting" and _width(student) == width):
        return nn.Identity()
    if when == "norm":
        check_shapes(student, teacher)
        return nn.Sequential(pointwise(student, width, bias=False), batch_norm(student, width))
    return pointwise(student, width)


@final
class Adapted(nn.Module):
    """`loss` of features brought to size, of one module or lists of several; `margin` goes on to it if there is one.

    >>> loss = Adapted(lambda student, teacher: F.mse_loss(student, teacher), (8, 16, 4, 4), (8, 32, 2, 2))
    >>> loss(torch.ones(8, 16, 4, 4), torch.ones(8, 32, 2, 2)).shape
    torch.Size([])
    """

    margin: Tensor | None

    def __init__(self, loss: Callable[..., Tensor], student: Any, teacher: Any, margin: Tensor | None = None) -> None:
        super().__init__()
        self.loss = loss
        pairs = list(zip(student, teacher, strict=True)) if taken(loss).several else [(student, teacher)]
        self._fits = taken(loss).adapter != "never"
        for one, other in pairs if self._fits else ():
            check_shapes(one, other, texts=True)
        self.adapters = nn.ModuleList(adapter(loss, one, other) for one, other in pairs)
        self.register_buffer("margin", margin, persistent=False)

    def forward(self, student: Any, teacher: Any, **known: Any) -> Tensor:
        """The loss; `known` is what it asks for."""
        if taken(self.loss).several:
            student = [adapt(part) for adapt, part in zip(self.adapters, student, strict=True)]
        elif self._fits:
            student, teacher = same_size(student, teacher)
            student = self.adapters[0](student)
        if self.margin is not None:
            known["margin"] = self.margin
        return self.loss(student, teacher, **known)


def negative_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """Of normal variables the mean of what is negative: E[x | x < 0], the margin of OFD.

    >>> negative_mean(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor([-0.7979])
    """
    mean, deviation = mean.double(), deviation.double().abs().clamp_min(1e-12)
    # The density by the share below zero is a Mills ratio; by erfcx it is exact however small that share is.
    ratio: Tensor = math.sqrt(2.0 / math.pi) / torch.special.erfcx(mean / deviation / math.sqrt(2.0))
    return (mean - deviation * ratio).float()
