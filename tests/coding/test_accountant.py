import numpy as np
import pytest

from lightning_compress.coding.accountant import LENET_5, LENET_300_100, Layer, fillers, layer_bits, rates
from lightning_compress.coding.paper import decode_layer, encode_layer

# Rates after pruning and sharing, in percent: the total, then its layers. The layers are only listed: weights, bits and
# rates of one row do not add up in the paper, by up to half a percentage point and more where a layer is small.
PUBLISHED = {
    "lenet_300_100": (LENET_300_100, 3.1, {"ip1": 3.1, "ip2": 3.8, "ip3": 15.7}),
    "lenet_5": (LENET_5, 3.05, {"conv1": 78.5, "conv2": 6.0, "ip1": 2.7, "ip2": 6.9}),
}


@pytest.mark.parametrize("net", PUBLISHED)
def test_totals_of_deep_compression(net: str) -> None:
    layers, total, rows = PUBLISHED[net]
    for layer in layers:
        print(f"{net} {layer.name}: {100 * rates([layer]).quantized:.2f} %, published {rows[layer.name]} %")
    assert abs(100 * rates(layers).quantized - total) < 0.15
    assert rates(layers).pruned == pytest.approx(0.08, abs=0.005)
    assert 1 / rates(layers).pruned == pytest.approx(12, abs=0.3)


def test_total_after_huffman_coding() -> None:
    # LeNet-5's is 2.55 % in the paper, below what its own rows give.
    coded = rates(LENET_300_100).coded
    assert coded is not None
    assert abs(100 * coded - 2.49) < 0.15


def test_without_fillers_biases_and_codebooks_the_rate_is_the_naive_one() -> None:
    naive = sum(layer.weights * layer.density * 11 for layer in LENET_300_100) / (32 * 266_200)
    assert 1 / naive == pytest.approx(35.6, abs=0.1)
    assert 1 / rates(LENET_300_100).quantized == pytest.approx(31, abs=0.5)


def test_a_layer_by_hand() -> None:
    # 100 weights kept of 1000, 4 + 3 bits each; zeros fill distances over 8: 0.9^8 / (1 - 0.9^8) = 0.755825 per weight.
    assert fillers(0.1, 3) == pytest.approx(0.755825, abs=1e-6)
    assert layer_bits(Layer("fc", 1000, 5, 0.1, 4, 3)) == pytest.approx(100 * 1.755825 * 7 + 32 * (16 + 5), abs=1e-2)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("index_bits", [2, 3, 5, 8])
def test_fillers_of_random_masks(density: float, index_bits: int) -> None:
    kept = np.flatnonzero(np.random.default_rng(0).random(400_000) < density)
    counted = ((np.diff(kept, prepend=-1) - 1) >> index_bits).sum() / len(kept)
    assert fillers(density, index_bits) == pytest.approx(counted, rel=0.03, abs=2e-3)


@pytest.mark.parametrize("layer", [*LENET_300_100, *LENET_5], ids=lambda layer: f"{layer.name}-{layer.weights}")
def test_real_bytes_of_random_masks(layer: Layer) -> None:
    rng = np.random.default_rng(0)
    levels = np.append(0, rng.normal(0, 0.1, 2**layer.bits - 1)).astype(np.float32)
    # Exactly as many weights as the density says, so that the rate is compared and not the luck of the draw.
    weights = np.zeros(layer.weights, np.float32)
    kept = rng.permutation(layer.weights)[: round(layer.weights * layer.density)]
    weights[kept] = rng.choice(levels[1:], kept.size)
    data = encode_layer(weights, levels, index_bits=layer.index_bits)
    np.testing.assert_array_equal(
        decode_layer(data, layer.weights, num_levels=len(levels), index_bits=layer.index_bits), weights
    )
    assert 8 * len(data) + 32 * layer.biases == pytest.approx(layer_bits(layer), rel=0.01, abs=50)
    huffman = encode_layer(weights, levels, index_bits=layer.index_bits, coded=True)
    told = decode_layer(huffman, layer.weights, num_levels=len(levels), index_bits=layer.index_bits, coded=True)
    np.testing.assert_array_equal(told, weights)
    # Codes are drawn evenly here: Huffman gains on the distances alone, and stays within a bit of their entropy.
    distances = np.diff(np.flatnonzero(weights), prepend=-1) - 1
    counts = np.bincount(np.concatenate([distances & 31, np.full((distances >> 5).sum(), 31)]))
    shares = counts[counts > 0] / counts.sum()
    floor = counts.sum() * -(shares * np.log2(shares)).sum()
    stream = 8 * (len(huffman) - 4 * len(levels)) - counts.sum() * layer.bits
    assert floor - 0.02 * counts.sum() * layer.bits < stream < floor + counts.sum() + 8 * (len(levels) + 40)


def test_the_layout_by_hand() -> None:
    # Weights 0 and 10 are kept, of 12; 3 bits reach 8 places: a zero at place 8 fills the distance to 10.
    weights = np.zeros(12, np.float32)
    weights[[0, 10]] = 5, 7
    data = encode_layer(weights, np.array([0, 5, 6, 7], np.float32), index_bits=3)
    # 3 entries; distances less one 0, 7, 1 in 3 bits; codes 1, 0, 3 in 2 bits; four floats.
    assert data[:4] == bytes([3, 0b01111000, 0b0, 0b110001])
    assert len(data) == 4 + 16


@pytest.mark.parametrize(
    ("weights", "levels"),
    [([1, 3], [0, 1, 2, 4]), ([1, 2], [1, 2]), ([0, 1], [0, 1, 2])],
    ids=["other", "zero", "power"],
)
def test_weights_that_the_layout_cannot_hold(weights: list[float], levels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"among 2\^n levels, zero one of them"):
        encode_layer(np.array(weights, np.float32), np.array(levels, np.float32), index_bits=5)


def test_damaged_layers_are_refused() -> None:
    data = encode_layer(np.array([0, 1, 0, 1], np.float32), np.array([0, 1], np.float32), index_bits=5)
    with pytest.raises(ValueError, match="an index reaches weight 3 of 3"):
        decode_layer(data, 3, num_levels=2, index_bits=5)
    with pytest.raises(ValueError, match="bytes declared where"):
        decode_layer(data[:-1], 4, num_levels=2, index_bits=5)


def test_layers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fc: expected a density in \(0, 1\], got 0"):
        Layer("fc", 10, 1, 0, 4, 4)
    with pytest.raises(ValueError, match="fc: expected bits >= 1, got 0 and 5"):
        Layer("fc", 10, 1, 0.5, 0, 5)
    with pytest.raises(ValueError, match="give both coded_bits and coded_index_bits"):
        Layer("fc", 10, 1, 0.5, 4, 4, coded_bits=3.0)
    with pytest.raises(ValueError, match="bits after Huffman coding are not known"):
        layer_bits(Layer("fc", 10, 1, 0.5, 4, 4), coded=True)
    with pytest.raises(ValueError, match="at least one layer"):
        rates([])
    assert rates([Layer("fc", 10, 1, 0.5, 4, 4)]).coded is None
