"""What the layout of Deep Compression takes, from densities and bits alone: the arithmetic behind that paper's tables.

Per layer: each weight that is kept, and each zero that fills a distance too long for its index, takes the bits of a
code and of an index; the shared values and the biases take 32 bits each (Han, Mao and Dally 2016, arXiv:1510.00149,
section 3 and tables 2 to 5). coding/paper.py writes that layout for real.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

FLOAT_BITS = 32


@final
@dataclass(frozen=True)
class Layer:
    """A layer as the paper's tables describe it.

    `density` is the share of weights kept; `bits` those of a code, `index_bits` those of an index. `coded_bits` and
    `coded_index_bits` are what a code and an index take on average after Huffman coding, where that is known.

    Raises:
        ValueError: `density` is not in (0, 1], or bits are missing.
    """

    name: str
    weights: int
    biases: int
    density: float
    bits: int
    index_bits: int
    coded_bits: float | None = None
    coded_index_bits: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"{self.name}: expected a density in (0, 1], got {self.density}")
        if self.bits < 1 or self.index_bits < 1:
            raise ValueError(f"{self.name}: expected bits >= 1, got {self.bits} and {self.index_bits} for the index")
        if (self.coded_bits is None) != (self.coded_index_bits is None):
            raise ValueError(f"{self.name}: give both coded_bits and coded_index_bits, or neither")


@final
@dataclass(frozen=True)
class Rates:
    """Compressed size over the size in float32: after pruning, after sharing too, and after Huffman coding too.

    `pruned` counts weights, as the paper does; the others count bits. `coded` is None where bits after Huffman coding
    are not known.
    """

    pruned: float
    quantized: float
    coded: float | None


def fillers(density: float, index_bits: int) -> float:
    """Zeros stored per weight that is kept, on average, where weights are pruned at random.

    An index of b bits reaches 2^b places, and a distance beyond k * 2^b, which takes k zeros more, has probability
    `(1 - density)^(k * 2^b)`.

    Example:
        >>> round(fillers(0.08, 5), 4)
        0.0745
    """
    beyond: float = (1.0 - density) ** (1 << index_bits)
    return beyond / (1.0 - beyond)


def layer_bits(layer: Layer, *, coded: bool = False) -> float:
    """Bits of a layer with its codebook and biases, before Huffman coding or, where `coded`, after it.

    Raises:
        ValueError: `coded`, and the bits after Huffman coding are not known.

    Example:
        >>> layer_bits(Layer("fc", 1000, 10, 0.5, bits=4, index_bits=8))
        6832.0
    """
    entry: float = layer.bits + layer.index_bits
    if coded:
        if layer.coded_bits is None or layer.coded_index_bits is None:
            raise ValueError(f"{layer.name}: the bits after Huffman coding are not known")
        entry = layer.coded_bits + layer.coded_index_bits
    entries = layer.weights * layer.density * (1.0 + fillers(layer.density, layer.index_bits))
    return entries * entry + FLOAT_BITS * ((1 << layer.bits) + layer.biases)


def rates(layers: Sequence[Layer]) -> Rates:
    """The rates of some layers together, or of one.

    Raises:
        ValueError: there is no layer.

    Example:
        >>> found = rates(LENET_300_100)
        >>> f"{found.pruned:.1%}, {found.quantized:.2%}, {found.coded:.2%}"
        '8.2%, 3.23%, 2.46%'
    """
    if not layers:
        raise ValueError("expected at least one layer")
    weights = sum(layer.weights for layer in layers)
    full = FLOAT_BITS * (weights + sum(layer.biases for layer in layers))
    is_coded = all(layer.coded_bits is not None for layer in layers)
    return Rates(
        pruned=sum(layer.weights * layer.density for layer in layers) / weights,
        quantized=sum(layer_bits(layer) for layer in layers) / full,
        coded=sum(layer_bits(layer, coded=True) for layer in layers) / full if is_coded else None,
    )


#: Tables 2 and 3 of the paper.
LENET_300_100 = (
    Layer("ip1", 235_200, 300, 0.08, 6, 5, 4.4, 3.7),
    Layer("ip2", 30_000, 100, 0.09, 6, 5, 4.4, 4.3),
    Layer("ip3", 1_000, 10, 0.26, 6, 5, 4.3, 3.2),
)
LENET_5 = (
    Layer("conv1", 500, 20, 0.66, 8, 5, 7.2, 1.5),
    Layer("conv2", 25_000, 50, 0.12, 8, 5, 7.2, 3.9),
    Layer("ip1", 400_000, 500, 0.08, 5, 5, 4.5, 4.5),
    Layer("ip2", 5_000, 10, 0.19, 5, 5, 5.2, 3.7),
)
