"""Where activations need codes besides the inputs of layers, so that a runtime adds and pools in integers."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_compress.core import surgery

_aten = torch.ops.aten
#: What runtimes compute in integers where everything that goes in has codes; maximum pooling needs none of its own.
_JOINS = {_aten.add, _aten.add_, _aten.cat, _aten.mean, _aten.avg_pool1d, _aten.avg_pool2d, _aten._adaptive_avg_pool2d}
#: What only moves numbers, as the zero padding of a shortcut does: who joins the outcome joins what went in.
_MOVES = {_aten.slice, _aten.constant_pad_nd, _aten.view, _aten._unsafe_view, _aten.permute, _aten.transpose}
_Place = tuple[int, int]


def found(model: nn.Module, example: Any, layers: list[str]) -> dict[str, list[str]]:
    """Modules whose output needs codes, each with those of `layers` that have it as their input, in order.

    Such an output goes into an addition, a concatenation or an average, or to several of `layers`. It is found by
    running `example` once; what no module puts out, a sum that a function rectifies in the middle of a forward pass,
    say, has no place for a quantizer and is left out, and so is the output of a module that runs more than once.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
    ...     def forward(self, x):
    ...         x = self.first(x)
    ...         return x + self.second(x)
    >>> found(Block(), torch.ones(1, 2), ["first", "second"])
    {'first': ['second'], 'second': []}
    """
    watch = _Watch()
    after = {name: partial(watch.written, name) for name, _ in model.named_modules()}
    surgery.watched(model, example, watch, before={name: partial(watch.read, name) for name in layers}, after=after)
    return watch.found()


@final
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which modules put out which tensor in which state, and who reads it; the tensors are kept, so ids are unique."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writers: dict[_Place, list[str]] = defaultdict(list)
        self.readers: dict[_Place, list[str]] = defaultdict(list)
        self.calls: Counter[str] = Counter()
        self.sources: dict[_Place, _Place] = {}
        self.joined: set[_Place] = set()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _JOINS:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor):
                    self.joined.update(self._line(leaf))
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in _MOVES:
            self.kept.append(output)
            self.sources[_place(output)] = _place(args[0])
        return output

    def _line(self, tensor: Tensor) -> Iterator[_Place]:
        """A tensor, and those that its numbers were moved from."""
        place: _Place | None = _place(tensor)
        while place is not None:
            yield place
            place = self.sources.get(place)

    def written(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self.calls[name] += 1
        if isinstance(output, Tensor):
            self.kept.append(output)
            self.writers[_place(output)].append(name)

    def read(self, name: str, _module: nn.Module, args: Any) -> None:
        self.readers[_place(args[0])].append(name)

    def found(self) -> dict[str, list[str]]:
        """Modules with the layers that read their output."""
        places = {}
        for place, writers in self.writers.items():
            once = [name for name in writers if name and self.calls[name] == 1]
            if once and (place in self.joined or len(self.readers[place]) > 1):
                places[once[0]] = [layer for layer in self.readers[place] if self.calls[layer] == 1]
        return places


def _place(tensor: Tensor) -> _Place:
    """A tensor until something is written into it."""
    return id(tensor), tensor._version
