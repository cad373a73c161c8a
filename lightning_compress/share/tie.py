"""`Tie`: layers that are one."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import nn

from lightning_compress.core import edits, select
from lightning_compress.core.method import Compact, Edit, Method, Stage

_INITS = ("mean", "first")


@final
class Tie(Method):
    """Has layers share weight and bias across the depth of a network (Lan et al., ALBERT, arXiv 1909.11942).

    Each pattern of `groups` names layers that are alike in all but their values; the first one takes the place of the
    others, with their `init`: the "mean" of all, or what it has itself ("first"). So what follows sees one layer: it
    has one mask, one codebook and one quantizer, is trained, counted and stored once, and goes by the name of the
    first. Batch norms stay apart, and are not folded into what they share.

    Raises:
        ValueError: an unknown `init`, a pattern that names fewer than two layers or one of another group, or layers
            that differ.

    >>> net = Tie(["^[02]$"]).attach(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), None)
    >>> net[0] is net[2]
    True
    """

    # Before all that changes a weight: of each group there is one layer left by then.
    stage: ClassVar[Stage] = Stage.STRUCTURE

    def __init__(self, groups: Sequence[str], *, init: str = "mean") -> None:
        super().__init__()
        if isinstance(groups, str) or not groups:
            raise ValueError(f"Tie: groups is a list of patterns, one for each group of layers; got {groups!r}")
        if init not in _INITS:
            raise ValueError(f"Tie: init must be one of {', '.join(_INITS)}; got {init!r}")
        self.groups, self.init = tuple(groups), init
        self._edits: list[Edit] = []

    @torch.no_grad()
    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put the first layer of each group in the place of the others."""
        found = [list(select.layers(model, owner="Tie", select=pattern)) for pattern in self.groups]
        for pattern, names in zip(self.groups, found, strict=True):
            if len(names) < 2:
                raise ValueError(f"Tie: {pattern!r} names one layer, {names[0]!r}; a group has at least two")
            if sum(bool(set(names) & set(other)) for other in found) > 1:
                raise ValueError(f"Tie: layers of {pattern!r} are in another group too; each can be in one")
        self._edits = [edits.tie(names) for names in found]
        for edit in self._edits:
            layers = [model.get_submodule(name) for name in edit["layers"]]
            edits.replay(model, [edit])
            for name, value in layers[0].named_parameters() if self.init == "mean" else ():
                value.copy_(torch.stack([layer.get_parameter(name) for layer in layers]).mean(0))
        return model

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """The layers are one already; say which."""
        return compact.with_edits(self._edits)
