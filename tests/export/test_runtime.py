from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightning_compress.export import runtime
from lightning_compress.tracking.provenance import cpu_name

WEIGHT = np.array([[1.0, -2.0], [3.0, 0.5], [0.0, 1.0]], np.float32)


def tiny_model(num_inputs: int = 1) -> onnx.ModelProto:
    """relu(x @ WEIGHT), with further inputs added to it."""
    names = [f"x{index}" for index in range(num_inputs)]
    nodes = [helper.make_node("MatMul", ["x0", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    if num_inputs == 2:
        nodes[1:] = [helper.make_node("Add", ["m", "x1"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    shapes: list[list[str | int | None]] = [["batch", 3], ["batch", 2]]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=False)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], [numpy_helper.from_array(WEIGHT, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("threads", [1, 2])
def test_file_and_bytes_compute_the_model(tmp_path: Path, threads: int) -> None:
    model = tiny_model()
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    batch = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    for source in (path, str(path), model.SerializeToString()):
        outputs = runtime.session(source, threads=threads)(batch)
        np.testing.assert_allclose(outputs, np.maximum(batch @ WEIGHT, 0), rtol=1e-6)


def test_session_options() -> None:
    one, two = runtime._options(1, "integer"), runtime._options(2, "float")
    assert (one.intra_op_num_threads, two.intra_op_num_threads) == (1, 2)
    assert one.inter_op_num_threads == two.inter_op_num_threads == 1
    assert one.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert one.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert one.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert one.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert one.get_session_config_entry("session.x64quantprecision") == "1"
    assert one.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "1"
    assert two.get_session_config_entry("session.disable_quant_qdq") == "1"


def test_names() -> None:
    assert runtime.name == f"onnxruntime {onnxruntime.__version__}"
    assert runtime.device_name() == cpu_name()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no ONNX file at .*absent\.onnx"):
        runtime.session(tmp_path / "absent.onnx")


def test_corrupt_models_say_which(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    whole = tiny_model().SerializeToString()
    for content in (b"", b"not a model", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot load .*broken\.onnx: expected a whole ONNX model, but it "):
            runtime.session(path)
        with pytest.raises(ValueError, match="cannot load these bytes"):
            runtime.session(content)


def test_several_inputs_go_by_name_or_in_order() -> None:
    session = runtime.session(tiny_model(num_inputs=2).SerializeToString())
    ours, other = np.array([[1.0, -2.0, 3.0]], np.float32), np.array([[9.0, 1.0]], np.float32)
    expected = np.maximum(ours @ WEIGHT + other, 0.0)
    np.testing.assert_allclose(session((ours, other)), expected, rtol=1e-6)
    np.testing.assert_allclose(session({"x1": other, "x0": ours}), expected, rtol=1e-6)
    for wrong in (ours, (ours,), {"x0": ours}, {"x0": ours, "x2": other}):
        with pytest.raises(ValueError, match="expected inputs called x0, x1, by name or in that order; got "):
            session(wrong)


def test_no_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        runtime.session(tiny_model().SerializeToString(), threads=0)
