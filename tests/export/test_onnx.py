import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from lightning_compress.core import surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import free_sizes
from lightning_compress.export.onnx import export
from lightning_compress.export.runtime import session
from lightning_compress.export.verify import check, compare, tolerance
from lightning_compress.models.text_lm import TextLM
from lightning_compress.quantize.method import Quantize


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def initializers(path: Path) -> dict[str, Any]:
    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def plainly(path: Path, inputs: Tensor) -> Tensor:
    """Outputs of the graph as it is written, no operator fused or replaced."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(opened.run(None, {"input": inputs.numpy()})[0])


def kernels(path: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def coded_layer(layer: nn.Module, stored: Stored, fixed: FixedQuantizer) -> Compact:
    """One layer with a coded weight and a rounded input, followed by a rounded output."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    weight.data.copy_(stored.value)
    surgery.put_on_input(layer, fixed)
    out = nn.ReLU()
    surgery.put_on_input(out, FixedQuantizer(torch.tensor(0.05), torch.tensor(128), 0, 255))
    net = nn.Sequential(layer, out).eval().requires_grad_(False)
    return Compact(net, {"0.weight": stored, "0.bias": Stored(bias.detach())})


def test_outputs_agree_with_the_torch_model(compact: Compact, inputs: Tensor, path: Path) -> None:
    assert export(compact, inputs, path) == path
    distance = compare(compact.model, session(path), inputs)
    check(distance, tolerance(compact.model))
    assert distance["relative_error"] < 0.02
    assert distance["agreement"] > 0.95


def test_a_float_model_agrees_to_float_sums(compact: Compact, inputs: Tensor, path: Path) -> None:
    model = surgery.plain(compact.model).eval().requires_grad_(False)
    stored = {name: Stored(tensor.value) for name, tensor in compact.stored.items()}
    export(Compact(model, stored), inputs, path)
    assert compare(model, session(path), inputs)["max_error"] < 1e-5


def test_weights_are_integers_in_the_file_and_stand_for_the_same_values(
    compact: Compact, inputs: Tensor, path: Path
) -> None:
    export(compact, inputs, path)
    found = initializers(path)
    for name in ("conv1.weight", "conv2.weight", "conv3.weight", "fc1.weight"):
        key = f"coded.{name.replace('.', '/')}"
        codes, scale, zero = (found.get(f"{key}.{part}") for part in ("codes", "scale", "zero"))
        assert codes is not None
        assert scale is not None
        assert codes.dtype in (np.int8, np.uint8)
        shape = [-1] + [1] * (codes.ndim - 1) if scale.ndim else []
        centred = codes.astype(np.float32) - (np.float32(0) if zero is None else zero.reshape(shape).astype(np.float32))
        assert np.array_equal(centred * scale.reshape(shape), compact.stored[name].value.numpy())
    coded = {name for name, stored in compact.stored.items() if stored.codes is not None}
    assert not coded & {name.removeprefix("model.") for name in found}
    largest_float = max(array.size for array in found.values() if array.dtype == np.float32)
    assert largest_float == compact.stored["fc2.weight"].value.numel()


def test_graph_holds_a_pair_for_each_activation_and_one_before_maximum_pooling(
    compact: Compact, inputs: Tensor, path: Path
) -> None:
    export(compact, inputs, path)
    model = onnx.load(path)
    count = Counter(node.op_type for node in model.graph.node)
    assert count["QuantizeLinear"] == 4 + 1
    assert count["DequantizeLinear"] == 5 + 4 + 4  # activations, weights, biases
    assert count["Clip"] == 2  # 4 bits, before and after the pooling
    (pool,) = (node for node in model.graph.node if node.op_type == "MaxPool")
    around = [node for node in model.graph.node if pool.input[0] in node.output or pool.output[0] in node.input]
    assert {node.op_type for node in around} == {"QuantizeLinear", "DequantizeLinear"}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for layer in ("conv1", "conv2", "conv3", "fc1"):
        assert types[f"coded.{layer}/bias.codes"] == TensorProto.INT32
    onnx.checker.check_model(model, full_check=True)


def test_onnx_runtime_takes_int8_kernels(compact: Compact, inputs: Tensor, path: Path) -> None:
    export(compact, inputs, path)
    # conv3 is followed by a batch norm in float, fc1 by a layer whose input is not rounded: they cannot be int8.
    assert kernels(path)["QLinearConv"] == 2


def test_a_linear_layer_with_rounded_output_is_int8_too(path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    stored = Stored(layer.weight.detach()).coded(torch.randint(-7, 8, (8, 16)), torch.rand(8) / 7, bits=4, axis=0)
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.1), torch.tensor(0), 0, 255))
    inputs = torch.rand(32, 16) * 20
    export(compact, inputs, path)
    assert kernels(path)["QGemm"] == 1
    assert compare(compact.model, session(path), inputs)["max_error"] < 0.05 * 1.01


@pytest.mark.parametrize(("low", "high", "zero"), [(0, 255, 3), (-128, 127, 5), (0, 15, 0), (-8, 7, -2), (-1, 1, 0)])
def test_activations_are_rounded_to_the_very_same_values(low: int, high: int, zero: int, path: Path) -> None:
    fixed = FixedQuantizer(torch.tensor(0.37), torch.tensor(zero), low, high)
    inputs = torch.cat([torch.linspace(-120, 120, 5001), torch.arange(-300, 300) * torch.tensor(0.37)])[:, None]
    export(Compact(nn.Sequential(fixed).eval(), {}), inputs, path)
    assert torch.equal(plainly(path, inputs), fixed(inputs))


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_affine_weights_with_any_zero_point(bits: int, axis: int | None, path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, 3)
    shape = () if axis is None else (6,)
    zero = torch.randint(0, 2**bits, shape)
    codes = torch.randint(0, 2**bits, layer.weight.shape)
    scale = torch.rand(shape) / 2**bits
    stored = Stored(layer.weight.detach()).coded(codes, scale, zero, bits=bits, axis=axis, symmetric=False)
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.02), torch.tensor(0), 0, 255))
    inputs = torch.rand(8, 3, 9, 9) * 5
    export(compact, inputs, path)
    # At most one code of the output apart, where a sum lies at the border of two.
    assert compare(compact.model, session(path), inputs)["max_error"] < 0.05 * 1.01
    assert compare(compact.model, session(path), inputs)["mean_error"] < 0.05 * 0.02


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8])
def test_a_bias_far_above_the_weights_survives(scale: float, axis: int | None, path: Path) -> None:
    layer = nn.Linear(4, 3)
    codes = torch.tensor([[0, 0, 0, 0], [1, -7, 3, 2], [0, 0, 0, 0]])
    scales = torch.tensor(scale) if axis is None else torch.tensor([0.1, scale, scale])
    stored = Stored(layer.weight.detach()).coded(codes, scales, bits=4, axis=axis)
    layer.bias.data.copy_(torch.tensor([0.5, -1.0, 3.0]))
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.1), torch.tensor(0), 0, 255))
    inputs = torch.rand(8, 4)
    export(compact, inputs, path)
    assert compare(compact.model, session(path), inputs)["max_error"] < 1e-6
    assert torch.allclose(plainly(path, inputs), compact.model(inputs))


def test_a_channel_without_weights_keeps_its_bias_whatever_its_scale(path: Path) -> None:
    layer = nn.Linear(4, 3)
    codes = torch.tensor([[0, 0, 0, 0], [1, -7, 3, 2], [0, 0, 0, 0]])
    stored = Stored(layer.weight.detach()).coded(codes, torch.tensor([269.0, 0.1, 269.0]), bits=4, axis=0)
    layer.bias.data.copy_(torch.tensor([0.5, -1.0, 0.0]))
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.1), torch.tensor(0), 0, 255))
    inputs = torch.rand(8, 4)
    export(compact, inputs, path)
    assert compare(compact.model, session(path), inputs)["max_error"] < 1e-6
    assert torch.allclose(plainly(path, inputs), compact.model(inputs))


def test_narrow_codes_are_stretched_for_a_finer_bias(path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 16)
    stored = Stored(layer.weight.detach()).coded(torch.randint(-1, 2, (16, 64)), torch.tensor(0.25), bits=2)
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.2), torch.tensor(0), 0, 3))
    export(compact, torch.rand(2, 64), path)
    found = initializers(path)
    assert found["coded.0/weight.codes"].max() == 64
    bias = found["coded.0/bias.codes"] * found["coded.0/bias.scale"]
    assert np.abs(bias - layer.bias.detach().numpy()).max() <= 0.25 * 0.2 / 64 / 2 * 1.001


def test_batch_is_free_unless_it_is_to_be_fixed(compact: Compact, inputs: Tensor, path: Path) -> None:
    export(compact, inputs[:1], path)
    assert session(path)(inputs[:5].numpy()).shape == (5, 10)
    export(compact, inputs[:3], path, dynamic_batch=False)
    with pytest.raises(
        ValueError, match=r"model\.onnx cannot be run on inputs of shape \(5, 1, 8, 8\): .* Expected: 3"
    ):
        session(path)(inputs[:5].numpy())


def test_export_is_quiet_and_keeps_no_trace_of_the_machine(
    compact: Compact, inputs: Tensor, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(compact, inputs, path)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert b".py" not in path.read_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_the_model_is_left_as_it_was(compact: Compact, inputs: Tensor, path: Path) -> None:
    before = compact.model(inputs)
    export(compact, inputs, path)
    assert torch.equal(compact.model(inputs), before)
    assert isinstance(compact.model.get_submodule("fc1.input_quantizer"), FixedQuantizer)


def test_activations_of_more_than_8_bits_are_refused(path: Path) -> None:
    fixed = FixedQuantizer(torch.tensor(0.1), torch.tensor(0), 0, 511)
    with pytest.raises(ValueError, match="at most 8 bits, got 9"):
        export(Compact(nn.Sequential(fixed).eval(), {}), torch.zeros(2, 3), path)


def test_a_zero_point_beyond_uint8_is_refused(compact: Compact, inputs: Tensor, path: Path) -> None:
    stored = replace(compact.stored["fc1.weight"], zero_point=torch.tensor(300, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"zero points in \[0, 255\]"):
        export(replace(compact, stored=compact.stored | {"fc1.weight": stored}), inputs, path)


def test_equal_zero_points_are_not_shared(tmp_path: Path) -> None:
    """Two layers of one width: with a shared zero point ONNX Runtime refuses the file where it rewrites int8."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval().requires_grad_(False)
    stored = {name: Stored(value) for name, value in net.state_dict().items()}
    for layer in ("0", "2"):
        codes = torch.randint(-127, 128, (6, 6))
        stored[f"{layer}.weight"] = stored[f"{layer}.weight"].coded(codes, torch.rand(6), bits=8, axis=0)
        surgery.put_on_input(net.get_submodule(layer), FixedQuantizer(torch.tensor(0.1), torch.tensor(0), 0, 255))
    net.load_state_dict({name: value.value for name, value in stored.items()}, strict=False)
    path = export(Compact(net, stored), torch.ones(2, 6), tmp_path / "model.onnx")
    assert session(path)(torch.ones(3, 6).numpy()).shape == (3, 6)


def test_a_weight_that_several_read_is_written_once(path: Path) -> None:
    """A tied one and those of an LSTM, whose gates are cut apart: int8 codes would be rewritten for each reader."""
    torch.manual_seed(0)
    tokens, compressor = torch.randint(9, (2, 5)), Compressor([Quantize(8, 8)])
    model = compressor.attach(TextLM(vocab_size=9, layers=1, features=6), tokens)
    compressor.steps = compressor.horizon = 1
    compressor.prepare(model, [(tokens, tokens)])
    compact = compressor.finalize(model, tokens)
    export(compact, tokens, path)
    check(compare(compact.model, session(path), tokens), tolerance(compact.model))
    codes = {name: array.dtype for name, array in initializers(path).items() if array.shape in ((9, 6), (24, 6))}
    assert list(codes.values()) == [np.uint8] * 3, codes


def agree(compact: Compact, inputs: Tensor, path: Path) -> None:
    export(compact, inputs, path)
    assert compare(compact.model, session(path), inputs)["max_error"] < 0.05 * 1.01  # a code of the output
    assert compare(compact.model, session(path), inputs)["mean_error"] < 0.05 * 0.02


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize(
    ("levels", "codes"),
    [
        ([-1.0, 0.0, 1.0], [-64, 0, 64]),
        ([-1.0, 1.0], [-64, 64]),
        ([-17.0, -3.0, 0.0, 120.0], [-17, -3, 0, 120]),
        ([-1.0, -2 / 3, 0.0, 1 / 3, 1.0], [-48, -32, 0, 16, 48]),
    ],
)
def test_levels_on_a_grid_become_int8(levels: list[float], codes: list[int], axis: int | None, path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, 3)
    scale = torch.tensor(0.1) if axis is None else torch.tensor([0.1, -0.2, 0.3, 0.1, -0.1, 0.2])
    chosen = torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % len(levels)
    stored = Stored(layer.weight.detach()).chosen(
        chosen, torch.tensor(levels), scale / max(map(abs, levels)), axis=axis
    )
    mask = torch.rand_like(stored.value) < 0.7
    fixed = FixedQuantizer(torch.tensor(0.02), torch.tensor(0), 0, 255)
    compact = coded_layer(layer, stored.masked(mask), fixed)
    agree(compact, torch.rand(8, 3, 9, 9) * 5, path)
    found = initializers(path)["coded.0/weight.codes"]
    assert found.dtype == np.int8
    assert set(np.abs(found).flatten()) <= {abs(code) for code in codes} | {0}
    assert not found[~mask.numpy()].any()
    assert kernels(path)["QLinearConv"] == 1


def test_levels_on_no_grid_are_floats(path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    codes = torch.randint(0, 3, (8, 16))
    stored = Stored(layer.weight.detach()).chosen(codes, torch.tensor([-0.31, 0.0, 0.2711]), torch.tensor(2.0))
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.1), torch.tensor(0), 0, 255))
    agree(compact, torch.rand(8, 16) * 5, path)
    assert np.array_equal(initializers(path)["model.0.weight"], stored.value.numpy())


def test_blocks_of_levels_on_a_grid_become_int8(path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3)
    levels = torch.randint(-31, 32, (5, 9)).float()
    stored = Stored(layer.weight.detach()).chosen(torch.randint(0, 5, (6, 4)), levels, torch.tensor(0.01))
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.02), torch.tensor(0), 0, 255))
    agree(compact, torch.rand(8, 4, 9, 9) * 5, path)
    assert np.abs(initializers(path)["coded.0/weight.codes"]).max() >= 31


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("make", [lambda: nn.Linear(10, 8), lambda: nn.Conv2d(10, 8, 3)])
def test_groups_of_channels_are_blocks_of_codes(
    make: Callable[[], nn.Module], symmetric: bool, bits: int, path: Path
) -> None:
    torch.manual_seed(0)
    layer = make()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1)) if symmetric else (0, 2**bits)
    zero = None if symmetric else torch.randint(0, 2**bits, (8, 3))
    stored = Stored(weight.detach()).coded(
        torch.randint(low, high, weight.shape),
        torch.rand(8, 3) / 2**bits,
        zero,
        bits=bits,
        symmetric=symmetric,
        groups=torch.tensor([4, 4, 2]),
    )
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.02), torch.tensor(0), 0, 255))
    agree(compact, torch.rand(8, *weight.shape[1:]) * 5, path)
    node = next(node for node in onnx.load(path).graph.node if "0/weight.codes" in "".join(node.input))
    assert {attribute.name: attribute.i for attribute in node.attribute} == {"axis": 1, "block_size": 4}
    assert initializers(path)["coded.0/weight.codes"].dtype in (np.int8, np.uint8)


def test_uneven_groups_are_floats(path: Path) -> None:
    layer = nn.Linear(10, 8)
    stored = Stored(layer.weight.detach()).coded(
        torch.randint(-7, 8, (8, 10)), torch.rand(8, 3), bits=4, groups=torch.tensor([4, 3, 3])
    )
    compact = coded_layer(layer, stored, FixedQuantizer(torch.tensor(0.02), torch.tensor(0), 0, 255))
    agree(compact, torch.rand(8, 10), path)
    assert np.array_equal(initializers(path)["model.0.weight"], stored.value.numpy())


class Reader(nn.Module):
    """A recurrent layer over token ids, and the mean of its states."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(9, 4), kind(4, 5, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.rnn(self.embedding(tokens))[0].mean(1)
        return outputs


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_every_recurrent_model_of_a_process_takes_any_length(kind: Callable[..., nn.Module], path: Path) -> None:
    longer = torch.randint(9, (3, 11), generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # by itself, the exporter leaves the length free in the first file alone
        net = Reader(kind).eval().requires_grad_(False)
        opened = session(export(Compact(net, {}), longer[:2, :7], path))
        torch.testing.assert_close(torch.from_numpy(opened(longer.numpy())), net(longer))


def test_a_size_that_is_not_free_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would take inputs of length=16 alone; write the model so that nothing"):
        free_sizes.check(["batch", 16], {0: "batch", 1: "length"})


class Lookup(nn.Module):
    """Embeddings side by side, as many as `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(9, 4), nn.Linear(4 * tokens, 3)

    def forward(self, ids: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.embedding(ids).reshape(len(ids), -1))
        return outputs


@pytest.mark.parametrize("shape", [(6,), (6, 5)])
def test_ids_without_a_length_that_could_be_free(
    shape: tuple[int, ...], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net, ids = Lookup(*shape[1:] or (1,)).eval().requires_grad_(False), torch.randint(9, shape)
    opened = session(export(Compact(net, {}), ids[:2], path))
    torch.testing.assert_close(torch.from_numpy(opened(ids.numpy())), net(ids))
    assert ("takes texts of 5 tokens alone: " in caplog.text) == (len(shape) > 1)


def test_outputs_have_names_where_there_are_several(path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a tensor as output, .* got a tuple: let forward return a dict"):
        export(Compact(nn.GRU(2, 3).eval(), {}), torch.zeros(2, 4, 2), path)
