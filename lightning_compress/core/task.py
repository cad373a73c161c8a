"""What the model is trained for: a loss and the metrics that judge it, behind one small object."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.core import lookup


@final
@dataclass(frozen=True)
class Task:
    """A loss, the metrics beside it, and which metric selects.

    `loss(outputs, targets)` is a 0-dim tensor; `metrics()` builds fresh torchmetrics; `objective` names the one that
    model selection and searches look at, and `maximize` says which way is better.
    """

    loss: Callable[[Any, Any], Tensor]
    metrics: Callable[[], MetricCollection] = field(default=lambda: MetricCollection({}))
    objective: str = "loss"
    maximize: bool = False


def _accuracy(num_classes: int) -> MetricCollection:
    return MetricCollection({"accuracy": MulticlassAccuracy(num_classes, average="micro")})


def classification(num_classes: int, label_smoothing: float = 0.0) -> Task:
    """Cross entropy and accuracy (share of samples, 0 to 1) over `num_classes` classes.

    `outputs` are logits of shape [batch, num_classes], `targets` int64 of shape [batch].

    >>> import torch
    >>> task = classification(3)
    >>> float(task.loss(torch.zeros(2, 3), torch.tensor([0, 2]))) > 1.09
    True
    """
    if num_classes < 2:
        raise ValueError(f"classification needs num_classes >= 2, got {num_classes}")
    return Task(
        loss=partial(F.cross_entropy, label_smoothing=label_smoothing),
        metrics=partial(_accuracy, num_classes),
        objective="accuracy",
        maximize=True,
    )


def named_loss(loss: str | Callable[..., Any], *, owner: str) -> Callable[..., Tensor]:
    """A loss for methods that look at data themselves: "cross_entropy", a dotted path, or a function, which stays.

    Raises:
        ValueError: no such function; the message begins with `owner`.

    >>> named_loss("cross_entropy", owner="Example").__name__
    'cross_entropy'
    """
    return lookup.among(loss, {"cross_entropy": F.cross_entropy}, owner=owner)
