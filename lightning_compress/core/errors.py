"""Wrong answers counted, in all and of one class, also with the logits of classes raised that were never shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

#: What may be added to logits, as far as Hinton, Vinyals and Dean looked and further.
GRID = torch.arange(0, 200) / 10


@final
@dataclass(frozen=True)
class Errors:
    """Counts errors as Hinton, Vinyals and Dean do (arXiv 1503.02531, section 3).

    `apart` is a class whose errors are also counted alone. To the logits of the classes `raised`, which the network
    was never shown, is added what is best on the validation part (the paper chose it on the test part), and all errors
    are counted once more.

    Called with logits [number, classes] and labels [number] by split, "val" among them where classes are raised; gives
    `<split>/errors`, `<split>/errors_of_<apart>`, both with `_shifted` behind them too, and `shift`.

    >>> logits, labels = torch.tensor([[2.0, 1.0], [1.0, 0.5], [3.0, 0.0]]), torch.tensor([0, 1, 0])
    >>> found = Errors(apart=1, raised=[1])({"val": (logits, labels)})
    >>> found["val/errors"], found["val/errors_shifted"], found["shift"]
    (1, 0, 0.8)
    """

    apart: int
    raised: Sequence[int] = ()

    def __call__(self, answers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The figures of all splits."""
        shifts = {"": 0.0}
        if self.raised:
            shifts["_shifted"] = best_shift(*answers["val"], self.raised)
        found: dict[str, float] = {}
        for split, (logits, labels) in answers.items():
            for name, by in shifts.items():
                wrong = wrong_with(logits, labels, self.raised, by)
                found[f"{split}/errors{name}"] = int(wrong.sum())
                found[f"{split}/errors_of_{self.apart}{name}"] = int(wrong[labels == self.apart].sum())
        return found | ({"shift": shifts["_shifted"]} if self.raised else {})


def wrong_with(logits: Tensor, labels: Tensor, classes: Sequence[int], shift: float) -> Tensor:
    """Which answers are wrong with `shift` added to the logits of `classes`, bool [number].

    >>> wrong_with(torch.tensor([[1.0, 0.5]]), torch.tensor([1]), [1], 0.6)
    tensor([False])
    """
    moved = logits.clone()
    moved[:, list(classes)] += shift
    return moved.argmax(1) != labels


def best_shift(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> float:
    """The shift on the grid with the fewest errors; the one in the middle of those that are as good.

    >>> best_shift(torch.tensor([[1.0, 0.5], [2.0, 0.0]]), torch.tensor([1, 0]), [1])
    1.3
    """
    errors = torch.stack([wrong_with(logits, labels, classes, float(shift)).sum() for shift in GRID])
    best = GRID[errors == errors.min()]
    return round(float(best[len(best) // 2]), 1)
