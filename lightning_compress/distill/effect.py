"""That each loss term does something: seen once, in the first step in which it counts."""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor


@final
class Effects:
    """Watches the terms called `names` until each has been seen to have a value and to move the student.

    >>> effects = Effects(["distill"])
    >>> effects.see("distill", torch.zeros(()), [])
    >>> effects.fault
    "the term 'distill' carries no gradient: are the student's outputs detached?"
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._unseen = set(names)
        #: What is wrong with a term, if anything.
        self.fault: str | None = None

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: each term was seen, or something is wrong with one."""
        return self.fault is not None or not self._unseen

    def see(self, name: str, term: Tensor, outputs: Sequence[Tensor]) -> None:
        """Look at `term`, which was made of the student's `outputs`, unless it was seen before."""
        if name not in self._unseen:
            return
        self._unseen.remove(name)
        what = self._wrong(term, [output for output in outputs if output.requires_grad])
        if what is not None and self.fault is None:
            self.fault = f"the term {name!r} {what}"

    def _wrong(self, term: Tensor, outputs: Sequence[Tensor]) -> str | None:
        if not term.requires_grad or not outputs:
            return "carries no gradient: are the student's outputs detached?"
        value = float(term.detach())
        if value == 0.0:
            return "is exactly zero: is the teacher the student itself, or are the outputs constant?"
        slopes = torch.autograd.grad(term, outputs, retain_graph=True, allow_unused=True)
        if not any(bool(slope.any()) for slope in slopes if slope is not None):
            return f"is {value:.3g} but has no gradient in the student: are the outputs it looks at constant?"
        return None
