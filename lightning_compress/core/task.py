"""What the model is trained for: a loss and the metrics that judge it, behind one small object.

Outputs are logits [batch, classes, ...], as PyTorch's own cross entropy takes them: classes are the second dimension,
and what follows are positions (tokens of a text, pixels), each with a target of its own, [batch, ...].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
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


@final
class _Accuracy(Metric):
    """Share of right answers of some heads together; `places` are their columns of the targets."""

    right: Tensor
    given: Tensor

    def __init__(self, places: Mapping[str, int]) -> None:
        super().__init__()
        self.places = dict(places)
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("given", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Count a batch."""
        for head, place in self.places.items():
            self.right += (outputs[head].argmax(-1) == targets[:, place]).sum()
            self.given += len(targets)

    def compute(self) -> Tensor:
        """The share so far."""
        return self.right / self.given


@final
class _Perplexity(Metric):
    """exp of the mean cross entropy of all positions so far, each counted alike."""

    total: Tensor
    given: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("given", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        self.total += F.cross_entropy(outputs.float(), targets, reduction="sum")
        self.given += targets.numel()

    def compute(self) -> Tensor:
        """The perplexity so far."""
        return (self.total / self.given).exp()


def _accuracy(num_classes: int | Mapping[str, int]) -> MetricCollection:
    if not isinstance(num_classes, Mapping):
        return MetricCollection({"accuracy": MulticlassAccuracy(num_classes, average="micro")})
    places = {head: place for place, head in enumerate(sorted(num_classes))}
    alone = {f"accuracy/{head}": _Accuracy({head: place}) for head, place in places.items()}
    # Without groups: of metrics that agree on the first batch, torchmetrics would update one alone from then on.
    return MetricCollection({"accuracy": _Accuracy(places), **alone}, compute_groups=False)


def cross_entropy(outputs: Tensor | Mapping[str, Tensor], targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy, mean over the batch and all positions; of several heads the sum of theirs.

    `outputs` are logits [batch, classes, ...] for `targets` int64 [batch, ...], or logits [batch, classes] by head for
    `targets` [batch, heads], whose columns are in the order of the heads' names.

    >>> logits, targets = torch.randn(3, 4), torch.tensor([0, 3, 1])
    >>> twice = cross_entropy({"a": logits, "b": logits}, torch.stack([targets, targets], dim=1))
    >>> torch.equal(twice, 2 * cross_entropy(logits, targets))
    True
    """
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
    terms = [
        F.cross_entropy(own, right, label_smoothing=label_smoothing)
        for (_, own), right in zip(sorted(outputs.items()), targets.unbind(1), strict=True)
    ]
    return reduce(torch.add, terms)


def classification(num_classes: int | Mapping[str, int], label_smoothing: float = 0.0) -> Task:
    """Cross entropy and accuracy (share of samples, 0 to 1) over `num_classes` classes.

    `outputs` are logits of shape [batch, num_classes], `targets` int64 of shape [batch]. Of several heads, {"digit":
    10, "parity": 2}, there are logits by name and `targets` [batch, heads] in the order of the names; the loss is the
    sum of theirs, "accuracy" their mean, "accuracy/digit" one's own.

    >>> task = classification(3)
    >>> float(task.loss(torch.zeros(2, 3), torch.tensor([0, 2]))) > 1.09
    True
    """
    for head, number in num_classes.items() if isinstance(num_classes, Mapping) else [("", num_classes)]:
        if number < 2:
            raise ValueError(f"classification needs num_classes >= 2, got {number}{f' for {head}' if head else ''}")
    return Task(
        loss=partial(cross_entropy, label_smoothing=label_smoothing),
        metrics=partial(_accuracy, num_classes),
        objective="accuracy",
        maximize=True,
    )


def next_token(label_smoothing: float = 0.0) -> Task:
    """Cross entropy of the token that follows each one, and perplexity: exp of its mean over all tokens, unsmoothed.

    `outputs` are logits [batch, tokens of the vocabulary, length], `targets` int64 [batch, length]. Selection takes
    the lowest perplexity.

    >>> task = next_token()
    >>> metrics = task.metrics()
    >>> metrics.update(torch.zeros(2, 5, 3), torch.ones(2, 3, dtype=torch.int64))
    >>> round(float(metrics.compute()["perplexity"]), 4)
    5.0
    """
    return Task(
        loss=partial(cross_entropy, label_smoothing=label_smoothing),
        metrics=lambda: MetricCollection({"perplexity": _Perplexity()}),
        objective="perplexity",
    )


def by_kind(kind: str, num_classes: int | Mapping[str, int], label_smoothing: float = 0.0) -> Task:
    """The task that data of `num_classes` says it is for: "classification" or "next_token".

    Raises:
        ValueError: another kind.

    >>> by_kind("next_token", 2000).objective
    'perplexity'
    """
    if kind not in ("classification", "next_token"):
        raise ValueError(f"data is for classification or next_token, got {kind!r}; give a task of your own to compress")
    return next_token(label_smoothing) if kind == "next_token" else classification(num_classes, label_smoothing)


def by_head(outputs: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by the names of the heads; a single one is called "".

    >>> list(by_head(torch.zeros(3, 2)))
    ['']
    """
    return dict(outputs) if isinstance(outputs, Mapping) else {"": outputs}


def named_loss(loss: str | Callable[..., Any], *, owner: str) -> Callable[..., Tensor]:
    """A loss for methods that look at data themselves: "cross_entropy", a dotted path, or a function, which stays.

    Raises:
        ValueError: no such function; the message begins with `owner`.

    >>> named_loss("cross_entropy", owner="Example").__name__
    'cross_entropy'
    """
    return lookup.among(loss, {"cross_entropy": cross_entropy}, owner=owner)
