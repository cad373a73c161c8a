"""`Ensemble`: several networks that put out one answer."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

_MEANS = ("probabilities", "logits")


@final
class Ensemble(nn.Module):
    """The weighted mean of what `members` put out, as logits of shape [batch, classes, ...]; a teacher like any other.

    With `mean` "probabilities" the softmax of the output is the mean of the members' softmax, as in Hinton 2015
    (arXiv 1503.02531); at another temperature it is the mean that is softened. With "logits" the logits are averaged:
    their geometric mean. `shares`, one number for each member (default: all alike), are divided by their sum.

    Raises:
        ValueError: no members, an unknown `mean`, shares that are not as many as members, or not positive.

    >>> both = Ensemble([nn.Identity(), nn.Identity()], [1, 3], mean="logits")
    >>> both(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2.]])
    """

    def __init__(
        self, members: Sequence[nn.Module], shares: Sequence[float] | None = None, *, mean: str = "probabilities"
    ) -> None:
        super().__init__()
        given = [1.0] * len(members) if shares is None else list(shares)
        if mean not in _MEANS:
            raise ValueError(f"Ensemble: mean must be one of {', '.join(_MEANS)}; got {mean!r}")
        if not given or len(given) != len(members) or min(given) <= 0:
            raise ValueError(f"Ensemble: needs a share above 0 for each of its {len(members)} members; got {given}")
        self.members = nn.ModuleList(members)
        # By its name the mean is part of the state, and so of the hash that the ensemble is known by.
        self._shares = f"shares_of_{mean}"
        self.register_buffer(self._shares, torch.tensor(given) / sum(given))
        self.mean = mean

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean, in float32."""
        outputs = [member(inputs) for member in self.members]
        if len({each.shape for each in outputs}) > 1:
            raise ValueError(f"Ensemble: members must put out one shape, got {[tuple(each.shape) for each in outputs]}")
        logits = torch.stack(outputs).float()  # [members, batch, classes, ...]
        shares = self.get_buffer(self._shares).float().view(-1, *[1] * (logits.dim() - 1))
        if self.mean == "logits":
            return (shares * logits).sum(0)
        return torch.logsumexp(logits.log_softmax(2) + shares.log(), 0)
