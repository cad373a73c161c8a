"""Whole residual blocks, masked in training and replaced by identities: networks lose depth."""

import copy
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact
from lightning_compress.core.weight import Weight
from lightning_compress.prune import graph
from lightning_compress.prune.groups import Keep, written
from lightning_compress.prune.patterns import masked_weight
from lightning_compress.prune.trial import close, noisy, same_outputs, zero

#: The name under which the units of a model are ranked together.
NAME = "blocks"
_SHOWN = 8


@final
class Block:
    """Residual blocks that become identities: their weights, and all that their branches add, are masked in training.

    A block is a module that gives back its input once those layers, and the norms behind them, are zero; each proves
    it on a noisy copy of the model. One that changes the size of its input stays. (Layer dropping: LayerDrop,
    arXiv 1909.11556; stochastic depth, arXiv 1603.09382, is the same in training.)

    Raises:
        ValueError: there is no such module with all of its layers selected.
    """

    def __init__(self, model: nn.Module, example: Any, layers: dict[str, nn.Module]) -> None:
        ends = removable(surgery.plain(model), example, layers)
        self.names = list(ends)
        self._writers = [_writers(model.get_submodule(name)) for name in ends]
        self._masks = [
            [
                *(Mask.on(layer, name, (1,) * getattr(layer, name).dim()) for layer, name in writers),
                *_masked(model, end),
            ]
            for writers, end in zip(self._writers, ends.values(), strict=True)
        ]

    def view(self, read: Callable[[Weight], Tensor] = masked_weight) -> dict[str, Tensor]:
        """Each block's entries, [units, size], of what `read` gives for its layers; zeros fill up the smaller ones."""
        rows = [torch.cat([read(Weight.of(*writer)).flatten() for writer in writers]) for writers in self._writers]
        return {NAME: nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    def gates(self) -> dict[str, list[tuple[Mask, Tensor, Tensor]]]:
        """All masks, of one place each."""
        first = torch.zeros(1, dtype=torch.int64)
        return {NAME: [(mask, first, first + unit) for unit, masks in enumerate(self._masks) for mask in masks]}

    def apply(self, keep: Keep) -> None:
        """Tighten the masks: what is gone stays gone."""
        for masks, kept in zip(self._masks, keep[NAME].tolist(), strict=True):
            for mask in masks:
                mask.mask.mul_(kept)

    def keep(self) -> Keep:
        """The blocks that the masks keep now."""
        return {NAME: torch.cat([masks[0].mask.flatten() for masks in self._masks]) > 0}

    def finalize(self, compact: Compact) -> Compact:
        """Put an identity in the place of each masked block."""
        model, stored = compact.model, compact.stored
        gone = [name for name, kept in zip(self.names, self.keep()[NAME].tolist(), strict=True) if not kept]
        made = [edits.drop(name) for name in gone]
        for edit in made:
            stored = edits.cut_stored(model, stored, edit)
        return Compact(edits.replay(model, made), stored, [*compact.edits, *made])


def _writers(block: nn.Module) -> list[tuple[nn.Module, str]]:
    return [
        (module, name)
        for module in block.modules()
        if isinstance(module, edits.WRITERS)
        for name in ("weight", "in_proj_weight")
        if getattr(module, name, None) is not None
    ]


def _masked(model: nn.Module, ends: list[str]) -> list[Mask]:
    """Masks on what the layers at the ends have beside weights, and on the norms there."""
    masks = []
    for name in ends:
        layer: Any = model.get_submodule(name)
        own = [n for n in written(model, name) if n == "bias" or isinstance(layer, edits.SCALES)]
        masks += [Mask.on(layer, attribute, (1,) * getattr(layer, attribute).dim()) for attribute in own]
    return masks


def removable(model: nn.Module, example: Any, layers: dict[str, nn.Module]) -> dict[str, list[str]]:
    """Residual blocks of a plain `model` that may go, with the layers in each that have to be zero for that.

    Raises:
        ValueError: there is none, or some cannot go together.
    """
    trial, _ = noisy(model)
    found: dict[str, list[str]] = {}
    for name, inputs in _candidates(trial, example, layers).items():
        if any(other.startswith(f"{name}.") for other in found):
            continue  # it is made of such blocks
        block = copy.deepcopy(trial.get_submodule(name))
        ends = _ends(block, inputs)
        for end in ends:
            zero(block, end)
        with torch.no_grad():
            if ends and close(inputs, block(inputs)):
                found[name] = [surgery.dotted(name, end) for end in ends]
    found = {name: found[name] for name, _ in model.named_modules() if name in found}
    for end in (end for ends in found.values() for end in ends):
        zero(trial, end)
    if not found or not same_outputs(trial, example, lambda: [edits.drop(name) for name in found]):
        shown = sorted(layers)
        raise ValueError(
            "pruning: no residual block may go: expected modules that add a branch to their input, of the same size, "
            f"with all layers selected; selected are {', '.join(shown[:_SHOWN])} ({len(shown)} layers)"
        )
    return found


def _ends(block: nn.Module, inputs: Tensor) -> list[str]:
    """Layers in a block that write what is added to its input."""
    places = graph.trace(block, inputs, label_input=True).places
    label = places[graph.INPUT]
    return [layer for (layer, side), own in places.items() if side == "out" and bool((own == label).any())]


def _candidates(model: nn.Module, example: Any, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Modules called once, with one tensor, that give one of the same size; the innermost first, with their input."""
    seen: dict[str, list[Tensor | None]] = {}

    def hook(name: str, args: Any, outputs: Any) -> None:
        same = len(args) == 1 and isinstance(args[0], Tensor) and isinstance(outputs, Tensor)
        seen.setdefault(name, []).append(args[0] if same and args[0].shape == outputs.shape else None)

    after = {
        name: lambda module, args, outputs, name=name: hook(name, args, outputs)
        for name, module in model.named_modules()
        if name and not isinstance(module, edits.WRITERS) and _all_selected(name, module, layers)
    }
    surgery.watched(model, example, torch.no_grad(), before={}, after=after)
    found = {name: calls[0] for name, calls in seen.items() if len(calls) == 1 and calls[0] is not None}
    return dict(sorted(found.items(), key=lambda item: -item[0].count(".")))


def _all_selected(name: str, module: nn.Module, layers: dict[str, nn.Module]) -> bool:
    kinds = tuple(kind for kind in edits.WRITERS if kind is not nn.MultiheadAttention)
    inside = [surgery.dotted(name, inner) for inner, layer in module.named_modules() if isinstance(layer, kinds)]
    return bool(inside) and layers.keys() >= set(inside)
