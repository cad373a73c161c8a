"""Activation quantizers in the compressed file: a row of the header and a scale for each.

A row is the layer whose input it rounds, lowest and highest code and zero point. One on an output has the module it
is a child of instead, and, fifth, the layers that read this output: their input quantizer is the same one.
"""

import copy
import struct
from dataclasses import dataclass, field
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from lightning_compress.core import surgery
from lightning_compress.core.fixed import FixedQuantizer


@final
@dataclass(frozen=True)
class Quantizers:
    """Quantizers by the layer whose input, and by the module whose output they round.

    >>> Quantizers.of(nn.ReLU()).rows()
    []
    """

    inputs: dict[str, FixedQuantizer] = field(default_factory=dict)
    outputs: dict[str, FixedQuantizer] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Those of a finalized model.

        Raises:
            ValueError: there is one in another place.
        """
        found = cls()
        places = {surgery.INPUT_CHILD: found.inputs, surgery.OUTPUT_CHILD: found.outputs}
        for name, module in model.named_modules(remove_duplicate=False):
            home, _, leaf = name.rpartition(".")
            if isinstance(module, FixedQuantizer):
                if leaf not in places:
                    raise ValueError(f"cannot pack {name!r}: a FixedQuantizer must be a layer's {surgery.INPUT_CHILD}")
                places[leaf][home] = module
        return found

    def rows(self) -> list[tuple[list[Any], Tensor]]:
        """What the header says of each, and its scale."""
        made = []
        for name, fixed in self.outputs.items():
            readers = [layer for layer, other in self.inputs.items() if other is fixed]
            made.append(([name, *_codes(fixed), readers], fixed.scale))
        own = {id(fixed) for fixed in self.outputs.values()}
        made += [([name, *_codes(fixed)], fixed.scale) for name, fixed in self.inputs.items() if id(fixed) not in own]
        return made

    def add(self, row: list[Any], scale: bytes) -> str:
        """Take one up from its row and scale; returns the name of the scale.

        Raises:
            ValueError: the row is not sound, or a layer has two.
        """
        name, low, high, zero, *readers = row
        layers = readers[0] if readers else [name]
        if len(readers) > 1 or not isinstance(layers, list) or not all(isinstance(n, str) for n in [name, *layers]):
            raise ValueError(f"a quantizer is that of {str(row)[:80]}")
        if not all(type(code) is int and abs(code) < 2**31 for code in (low, high, zero)):
            raise ValueError(f"a quantizer of {name[:80]!r} has the codes {str([low, high, zero])[:80]}")
        fixed = FixedQuantizer(torch.tensor(struct.unpack("<f", scale)[0]), torch.tensor(zero), low, high)
        for layer in layers:
            if layer in self.inputs:
                raise ValueError(f"the input of {layer[:80]!r} has two quantizers")
            self.inputs[layer] = fixed
        if readers:
            self.outputs[name] = fixed
        return surgery.dotted(name, f"{surgery.OUTPUT_CHILD if readers else surgery.INPUT_CHILD}.scale")

    def put_on(self, model: nn.Module) -> None:
        """Give a model copies of these."""
        inputs, outputs = copy.deepcopy((self.inputs, self.outputs))
        for layer, fixed in inputs.items():
            surgery.put_on_input(model.get_submodule(layer), fixed)
        for name, fixed in outputs.items():
            surgery.put_on_output(model.get_submodule(name), fixed)


def _codes(fixed: FixedQuantizer) -> tuple[int, int, int]:
    return fixed.low, fixed.high, int(fixed.zero_point)
