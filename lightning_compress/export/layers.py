"""A network as what takes its time: layers with all that decides their latency, and what the rest writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, final


@final
@dataclass(frozen=True)
class Layer:
    """A conv or linear layer as a runtime sees it; `size` is that of what it reads, without batch and channels.

    `before` and `after` say what it reads and writes: "uint8" where an integer kernel can do so. A `first` layer reads
    the network's inputs, which runtimes hold in another layout than what flows between layers.

    >>> Layer("linear", 64, 10).family == Layer("linear", 32, 10).family
    True
    """

    kind: Literal["conv", "linear"]
    ins: int
    outs: int
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    before: Literal["float", "uint8"] = "float"
    after: Literal["float", "uint8"] = "float"
    first: bool = False
    last: bool = field(default=False, compare=False)
    name: str = field(default="", compare=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The layer that `asdict` and JSON made `data` of."""
        known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**known)

    @property
    def depthwise(self) -> bool:
        """Whether each channel has filters of its own."""
        return self.groups == self.ins > 1

    @property
    def family(self) -> tuple[Any, ...]:
        """What layers share that differ in their channel counts only."""
        shape = (self.size, self.kernel, self.strides, self.pads, self.dilations)
        return self.kind, *shape, "each" if self.depthwise else self.groups, self.before, self.after, self.first

    @property
    def place(self) -> tuple[int, int]:
        """Where it is on its family's grid: channels in and out, of a depthwise one channels and filters of each."""
        return self.ins, self.outs // self.ins if self.depthwise else self.outs

    def at(self, ins: int, outs: int) -> Self:
        """The layer of its family at a place."""
        return replace(
            self, ins=ins, outs=outs * ins if self.depthwise else outs, groups=ins if self.depthwise else self.groups
        )

    def __str__(self) -> str:
        """What a user knows it by."""
        shape = " ".join("x".join(map(str, part)) for part in (self.kernel, self.size) if part)
        stride = f" stride {self.strides[0]}" if any(step > 1 for step in self.strides) else ""
        groups = "depthwise " if self.depthwise else f"{self.groups} groups " if self.groups > 1 else ""
        return f"{groups}{self.kind} {shape}{stride}".strip()


@final
@dataclass(frozen=True)
class Network:
    """The layers of a network, and how many numbers a sample its other operators write, by what they write."""

    layers: tuple[Layer, ...]
    moved: Mapping[str, float] = field(default_factory=lambda: {"float": 0, "uint8": 0})

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """The network that `asdict` and JSON made `data` of."""
        return cls(tuple(Layer.of(layer) for layer in data["layers"]), data["moved"])


@final
@dataclass(frozen=True)
class Narrowable:
    """A float network, and of each other operator how many numbers it writes and whose channels these are.

    `written` has the numbers with the share of them that goes with each layer's output channels.

    >>> net = Narrowable(Network((Layer("linear", 4, 8, name="fc"),), {"float": 8}), ((8, {"fc": 1.0}),))
    >>> net.at({"fc": (6, 4)}).moved
    {'float': 6.0}
    """

    network: Network
    written: tuple[tuple[int, Mapping[str, float]], ...]

    def at(self, shapes: Mapping[str, Sequence[int]]) -> Network:
        """The network with these first two sizes of the weights of the layers named."""
        layers = tuple(_narrowed(layer, shapes[layer.name]) if layer.name in shapes else layer
                       for layer in self.network.layers)  # fmt: skip
        left = {now.name: now.outs / was.outs for now, was in zip(layers, self.network.layers, strict=True)}
        gone = sum(
            count * share * (1.0 - left[name]) for count, shares in self.written for name, share in shares.items()
        )
        return Network(layers, {**self.network.moved, "float": self.network.moved["float"] - gone})


def _narrowed(layer: Layer, shape: Sequence[int]) -> Layer:
    outs, ins = shape
    if layer.depthwise:
        return replace(layer, ins=outs * layer.ins // layer.outs, outs=outs, groups=outs * layer.ins // layer.outs)
    return replace(layer, ins=ins * layer.groups, outs=outs)
