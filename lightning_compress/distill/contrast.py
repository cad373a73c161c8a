"""Contrastive distillation: a sample's two embeddings are near each other and far from those of other classes."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F


@final
class CRD(nn.Module):
    """Noise-contrastive estimation over banks of past embeddings (CRD: Tian 2020, arXiv 1910.10699).

    Both networks' features are embedded in `width` numbers of norm 1. A sample's embedding by one network is told from
    `negatives` drawn ones of other classes by the other network, at `temperature`. The banks hold a moving average of
    each sample's, with `momentum`; they are in checkpoints, and all ranks keep the same ones: what each sees is
    gathered. Unlike the authors' banks these hold a sample from when it is first seen, not at random before, and
    negatives are drawn with replacement.

    >>> loss, index = CRD((8, 16), (8, 32), negatives=5), torch.arange(8)
    >>> loss(torch.randn(8, 16), torch.randn(8, 32), index=index, targets=index % 2).shape
    torch.Size([])
    """

    def __init__(
        self,
        student: Sequence[int],
        teacher: Sequence[int],
        *,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Linear(math.prod(shape[1:]), width) for shape in (student, teacher))
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        #: Past embeddings [2, samples, width] by student and teacher, and each sample's label, -1 before it is seen.
        self._bank = torch.zeros(2, 0, width)
        self._labels = torch.zeros(0, dtype=torch.int64)
        #: The logarithm of the mean of exp(similarity / temperature) in the first step, of student and teacher.
        self._scale: Tensor | None = None
        self._by_class: tuple[Tensor, Tensor, Tensor] | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """The banks, for the checkpoint."""
        return {"bank": self._bank, "labels": self._labels, "scale": self._scale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The banks, from the checkpoint."""
        self._bank, self._labels, self._scale = state["bank"], state["labels"], state["scale"]
        self._by_class = None

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        """The loss; the banks learn of the batch.

        Raises:
            ValueError: targets are not one class each, or all samples so far are of one class.
        """
        if targets.dim() != 1 or targets.is_floating_point():
            raise ValueError(f"CRD needs one class for each sample, int64 [batch]; got {list(targets.shape)}")
        rows = [F.normalize(embed(part.flatten(1))) for embed, part in zip(self.embed, (student, teacher), strict=True)]
        ours = torch.stack(rows)  # [2, batch, width]
        all_index, all_targets = _gathered(index), _gathered(targets)
        everyones = torch.stack([_gathered(part.detach()) for part in ours])
        self._meet(all_index, all_targets, everyones)
        columns = torch.cat([index.unsqueeze(1), self._draw(targets)], 1)
        similarities = torch.stack([row @ past.T for row, past in zip(ours, self._bank.flip(0), strict=True)])
        logits = similarities.gather(2, columns.expand(2, *columns.shape)) / self.temperature
        if self._scale is None:
            self._scale = _mean_of_ranks(logits.detach().flatten(1).logsumexp(1) - math.log(logits[0].numel()))
        self._move(all_index, everyones)
        # Odds of being the sample itself: exp(logit - scale) to one for each negative.
        odds = logits - self._scale.view(2, 1, 1) - math.log(self.negatives)
        return (F.softplus(-odds[..., 0]) + F.softplus(odds[..., 1:]).sum(2)).mean(1).sum()

    @torch.no_grad()
    def _meet(self, index: Tensor, targets: Tensor, rows: Tensor) -> None:
        """Make room for samples not seen before, and take their embeddings."""
        if self._bank.device != rows.device:
            self._bank, self._labels = self._bank.to(rows.device), self._labels.to(rows.device)
            self._scale = None if self._scale is None else self._scale.to(rows.device)
        missing = 1 + int(index.max()) - len(self._labels)
        if missing > 0:
            self._bank = F.pad(self._bank, (0, 0, 0, missing))
            self._labels = F.pad(self._labels, (0, missing), value=-1)
        new = self._labels[index] < 0
        if bool(new.any()):
            self._bank[:, index[new]], self._labels[index[new]] = rows[:, new], targets[new]
            self._by_class = None

    def _classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The samples seen, in the order of their classes, and where each class begins and how many it has."""
        order = self._labels.argsort(stable=True)
        order = order[(self._labels < 0).sum() :]
        counts = self._labels[order].bincount()
        if int(counts.max()) == len(order):
            raise ValueError("CRD finds no sample of another class so far: shuffle the training data")
        return order, counts.cumsum(0) - counts, counts

    def _draw(self, targets: Tensor) -> Tensor:
        """Places of random samples of other classes, [batch, negatives]."""
        self._by_class = self._by_class or self._classes()
        order, begins, counts = self._by_class
        others = (len(order) - counts[targets]).unsqueeze(1)
        draws = torch.rand(len(targets), self.negatives, device=targets.device)
        places = torch.minimum((draws * others).long(), others - 1)
        places = places + counts[targets].unsqueeze(1) * (places >= begins[targets].unsqueeze(1))
        return order[places]

    @torch.no_grad()
    def _move(self, index: Tensor, rows: Tensor) -> None:
        mixed = self.momentum * self._bank[:, index] + (1.0 - self.momentum) * rows
        self._bank[:, index] = F.normalize(mixed, dim=2)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gathered(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, one behind the other."""
    if not _together():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _mean_of_ranks(tensor: Tensor) -> Tensor:
    if _together():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor
