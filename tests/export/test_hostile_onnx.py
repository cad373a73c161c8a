"""ONNX files that are damaged or made to do harm: each is refused by name, runs nothing and takes little memory."""

import json
import mmap
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import runtime, sealed, structure
from lightning_compress.export.onnx import export

Change = Callable[[onnx.ModelProto], None]
SEAL = sealed.SEAL


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of ours with floats, codes and 4-bit codes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 3))
    net = net.eval().requires_grad_(False)
    stored = {name: Stored(value) for name, value in net.state_dict().items()}
    codes, scale = torch.randint(-7, 8, (10, 64)), torch.rand(10, 4)
    stored["3.weight"] = stored["3.weight"].coded(codes, scale, bits=4, groups=torch.full((4,), 16))
    codes = torch.randint(-7, 8, (4, 1, 3, 3))
    stored["0.weight"] = stored["0.weight"].coded(codes, torch.rand(4), bits=4, axis=0)
    path = tmp_path_factory.mktemp("sound") / "model.onnx"
    return export(Compact(net, stored), torch.zeros(2, 1, 6, 6), path).read_bytes()


def flipped(file: bytes, place: int, bit: int = 0) -> bytes:
    damaged = bytearray(file)
    damaged[place] ^= 1 << bit
    return bytes(damaged)


def zipped(file: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", file)
    return buffer.getvalue()


def swapped(file: bytes) -> bytes:
    return file[:400] + file[460:480] + file[420:460] + file[400:420] + file[480:]


#: Damage to a file of ours, by what it is.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    **{f"flip {n}/20": lambda file, n=n: flipped(file, n * (len(file) - 1) // 20, n % 8) for n in range(21)},  # type: ignore[misc]
    **{f"flip in seal, byte {n}": lambda file, n=n: flipped(file, n, n % 8) for n in (1, 2, 3, 9, 28, 30, 31, 32, 96)},  # type: ignore[misc]
    **{f"cut to {n}": lambda file, n=n: file[:n] for n in (0, 1, 4, 28, 31, 33, 60, SEAL - 1, SEAL, SEAL + 1)},  # type: ignore[misc]
    **{f"cut to {n}/8": lambda file, n=n: file[: n * len(file) // 8] for n in range(1, 8)},  # type: ignore[misc]
    **{f"{n} bytes less": lambda file, n=n: file[:-n] for n in (1, 2, 4, 100)},  # type: ignore[misc]
    **{f"version {n}": lambda file, n=n: file.replace(b"1:", b"%d:" % n, 1) for n in (0, 2, 9)},  # type: ignore[misc]
    "one byte more": lambda file: file + b"\0",
    "twice": lambda file: file + file,
    "a byte put in": lambda file: file[:300] + b"\0" + file[300:],
    "a stretch swapped": swapped,
    "zeros at the end": lambda file: file[:-200] + bytes(200),
    "sealed again around it": lambda file: sealed.sealed(file)[:-1],
}
#: What is no ONNX file at all.
OTHERS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "one byte": lambda _: b"r",
    "zeros": lambda file: bytes(len(file)),
    "ones": lambda file: b"\xff" * len(file),
    "text": lambda _: b"this is no model, and says so in some words",
    "JSON": lambda _: json.dumps({"graph": [1, 2, 3]}).encode(),
    "zip": zipped,
    "pickle": lambda _: pickle.dumps({"graph": 1}),
    "ELF": lambda _: Path(sys.executable).resolve().read_bytes()[:5000],
    "random bytes": lambda _: np.random.default_rng(0).bytes(5000),
    "a graph alone": lambda file: onnx.load_model_from_string(file).graph.SerializeToString(),
    "an open group": lambda _: b"\x08\x0a\x42\x02\x10\x15" + b"\x3b" * 1000,
    "a length without end": lambda _: b"\x08\x0a\x3a" + b"\xff" * 60,
    "600,000 nodes": lambda _: b"\x08\x0a\x42\x02\x10\x15\x3a\x80\x9f\x49" + b"\x0a\0" * 600_000,
    "two graphs": lambda file: file[SEAL:] + b"\x3a\0",
    "a length of 2^60": lambda _: b"\x08\x0a\x3a" + b"\x80" * 8 + b"\x10" + b"graph",
}


def weight(model: onnx.ModelProto) -> TensorProto:
    found: TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == "model.5.weight")
    return found


def sized(*dims: int, data: bytes | None = None) -> Change:
    """A weight that claims these sizes and has this data."""

    def change(model: onnx.ModelProto) -> None:
        tensor = weight(model)
        tensor.dims[:] = dims
        if data is not None:
            tensor.raw_data = data

    return change


def outside(location: str, offset: str = "0", length: str = "120") -> Change:
    """A weight whose data is in another file."""

    def change(model: onnx.ModelProto) -> None:
        tensor = weight(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=value)

    return change


def versioned(ir: int | None = None, opset: int | None = None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.ir_version = model.ir_version if ir is None else ir
        model.opset_import[0].version = model.opset_import[0].version if opset is None else opset

    return change


def typed(model: onnx.ModelProto) -> None:
    tensor = weight(model)
    tensor.ClearField("raw_data")
    tensor.float_data.append(1.0)
    tensor.dims[:] = [2**20, 2**20]


def constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**40], raw_data=b"1234")
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(
        name="value", t=tensor, type=onnx.AttributeProto.TENSOR
    )


def nested(model: onnx.ModelProto) -> None:
    inner = onnx.GraphProto(name="inner")
    inner.initializer.add(name="c", data_type=TensorProto.FLOAT, dims=[2**40], raw_data=b"1234")
    node = model.graph.node.add(op_type="If", input=["input"], output=["z"])
    node.attribute.add(name="then_branch", g=inner, type=onnx.AttributeProto.GRAPH)


def in_function(model: onnx.ModelProto) -> None:
    function = model.functions.add(name="F", domain="d")
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**40])
    function.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", t=tensor)


def sparse(model: onnx.ModelProto) -> None:
    values = TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[1], raw_data=b"1234")
    indices = TensorProto(name="i", data_type=TensorProto.INT64, dims=[1], raw_data=bytes(8))
    model.graph.sparse_initializer.add(values=values, indices=indices, dims=[2**40])


#: Changes that are known before a runtime sees the file.
LIES: dict[str, Change] = {
    "2^40 entries": sized(2**40),
    "2^40 x 10 entries": sized(2**40, 10),
    "2^40 entries of no data": sized(2**40, data=b""),
    "2^20 x 2^20 entries": sized(2**20, 2**20),
    "2^31 entries": sized(2**31),
    "sizes that overflow to 0": sized(2**62, 4),
    "sizes that overflow to 30": sized(2**32 + 3, 30 * pow(2**32 + 3, -1, 2**64) % 2**64),
    "a negative size": sized(-3, 10),
    "two negative sizes": sized(-3, -10),
    "a hundred sizes": sized(*[1] * 100),
    "thousands of sizes": sized(*[2**60] * 5000),
    "floats of their own field": typed,
    "a constant of 2^40 entries": constant,
    "one in a branch": nested,
    "one in a function": in_function,
    "a sparse tensor": sparse,
    "/etc/passwd": outside("/etc/passwd"),
    "../../etc/passwd": outside("../" * 30 + "etc/passwd"),
    "a link to /etc/passwd": outside("link.bin"),
    "a file that is not there": outside("nowhere.bin"),
    "the folder": outside("."),
    "a name with a zero": outside("in\0side.bin"),
    "an offset beyond the end": outside("inside.bin", offset="500"),
    "a length beyond the end": outside("inside.bin", length=str(2**41)),
    "a negative offset": outside("inside.bin", offset="-100"),
    "a length that is none": outside("inside.bin", length="lots"),
    "no graph": lambda model: model.ClearField("graph"),
    "no operator set": lambda model: model.ClearField("opset_import"),
    "no IR version": lambda model: model.ClearField("ir_version"),
    "IR version 0": versioned(ir=0),
    "IR version 2": versioned(ir=2),
}
#: Changes that the runtime refuses.
REFUSED: dict[str, Change] = {
    "IR version 99": versioned(ir=99),
    "IR version 2^62": versioned(ir=2**62),
    "operator set 0": versioned(opset=0),
    "operator set 99": versioned(opset=99),
    "operator set -1": versioned(opset=-1),
    "another domain": lambda model: setattr(model.graph.node[0], "domain", "evil"),
    "another operator": lambda model: setattr(model.graph.node[0], "op_type", "Evil"),
    "an input of nobody": lambda model: model.graph.node[0].input.__setitem__(0, "nobody"),
    "no nodes": lambda model: model.graph.ClearField("node"),
    "no initializers": lambda model: model.graph.ClearField("initializer"),
    "nodes in a circle": lambda model: model.graph.node[0].input.__setitem__(0, model.graph.node[-1].output[0]),
    "a type that there is not": lambda model: setattr(weight(model), "data_type", 99),
    "a weight of another size": sized(5, 6),
    "entries that no data is for": sized(3, 11),
    "a wrong number of inputs": lambda model: model.graph.node[0].input.append("input"),
}


def changed(file: bytes, change: Change) -> bytes:
    model = onnx.load_model_from_string(file[SEAL:])
    change(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside.bin").write_bytes(bytes(300))
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    return tmp_path


def refusal(folder: Path, case: bytes) -> str:
    path = folder / "model.onnx"
    path.write_bytes(case)
    with pytest.raises(ValueError) as raised:
        runtime.session(path)
    told = str(raised.value)
    assert told.startswith(f"cannot load {path}: expected a whole ONNX model, but ")
    assert len(told.splitlines()) == 1
    assert 20 < len(told) - len(str(path)) < 900
    return told


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(name: str, sound: bytes, folder: Path) -> None:
    told = refusal(folder, DAMAGES[name](sound))
    assert "damaged" in told or "its seal has version" in told or "0 bytes" in told


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_refused(name: str, sound: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_try", lambda *_: pytest.fail("tried"))
    refusal(folder, OTHERS[name](sound))


@pytest.mark.parametrize("under_seal", [True, False])
@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_before_a_runtime_sees_them(
    name: str, under_seal: bool, sound: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed, "_try", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("opened"))
    case = changed(sound, LIES[name])
    assert "damaged" not in refusal(folder, sealed.sealed(case) if under_seal else case)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_runtime_refuses_is_said_in_a_line(name: str, sound: bytes, folder: Path) -> None:
    refusal(folder, sealed.sealed(changed(sound, REFUSED[name])))


@pytest.mark.parametrize("name", ["operator set 99", "another operator"])
def test_a_refusal_in_the_other_process_is_told(name: str, sound: bytes, folder: Path) -> None:
    assert "Op" in refusal(folder, changed(sound, REFUSED[name])).title()


def test_files_larger_than_onnx_can_be_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: pytest.fail("read"))
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match="it has 2,147,483,648 bytes, and ONNX files 1 to 2,147,483,647"):
        runtime.session(tmp_path / "model.onnx")
    with pytest.raises(FileNotFoundError, match="no ONNX file at"):
        sealed.checked(tmp_path)


def test_sound_files_are_opened_sealed_or_not(sound: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []
    real = sealed._try

    def counted(path: Path, size: int) -> None:
        tried.append(path)
        real(path, size)

    monkeypatch.setattr(sealed, "_try", counted)
    inputs = np.random.default_rng(0).standard_normal((5, 1, 6, 6), np.float32)
    split = changed(sound, outside("inside.bin"))
    cases = {"sealed": sound, "bare": sound[SEAL:], "outside": split, "sealed outside": sealed.sealed(split)}
    found = {}
    for name, case in cases.items():
        path = folder / f"{name}.onnx"
        path.write_bytes(case)
        assert sealed.checked(path) is (name == "sealed")
        found[name] = runtime.session(path)(inputs)
    assert [path.stem for path in tried] == ["bare", "outside", "sealed outside"]
    assert np.array_equal(found["sealed"], found["bare"])
    assert not np.allclose(found["sealed"], found["outside"])
    model = onnx.load(folder / "sealed.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.metadata_props[0].key == "lightning_compress.sha256"


def hungry(operator: str, *inputs: Any, element: int = TensorProto.FLOAT) -> bytes:
    """A short file whose model asks for much when it is opened or run."""
    names = [f"c{number}" for number in range(len(inputs))]
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in zip(names, inputs, strict=True)]
    nodes = [helper.make_node(operator, names, ["big"])]
    nodes += [helper.make_node("Cast", ["big"], ["f"], to=1), helper.make_node("ReduceSum", ["f"], ["s"], keepdims=0)]
    nodes += [helper.make_node("Add", ["x", "s"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 21)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


HUNGRY = {
    "a range of 2^33": hungry("Range", 0, 2**33, 1),
    "an expansion to 2^33": hungry("Expand", np.float32(1), np.array([2**33])),
    "a constant of 2^33": hungry("ConstantOfShape", np.array([2**33])),
}


@pytest.mark.parametrize("name", HUNGRY)
def test_models_that_ask_for_too_much_are_refused(name: str, folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    told = refusal(folder, HUNGRY[name])
    assert "alloc" in told
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # a child's count starts with what its parent has
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, own, 2**20)
    assert own < 2**21


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os; os.abort()", r"ONNX Runtime died of it \(SIGABRT\)"),
        ("import time; time.sleep(60)", "took more than 0.2 s"),
        ("raise SystemExit('this is why')", "but this is why; export or copy it again"),
    ],
)
def test_what_the_other_process_dies_of_is_told(
    program: str, told: str, sound: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "trial.py").write_text(program)
    monkeypatch.setattr(sealed, "_TRIAL", folder / "trial.py")
    monkeypatch.setattr(sealed, "_SECONDS", 0.2 if "sleep" in program else 60)
    monkeypatch.setattr(sealed, "_tried", set())
    (folder / "model.onnx").write_bytes(sound[SEAL:])
    with pytest.raises(ValueError, match=told):
        sealed.checked(folder / "model.onnx")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_no_file_takes_much_memory_or_ends_the_process(sound: bytes, folder: Path) -> None:
    lies = [changed(sound, change) for change in LIES.values()]
    cases = [build(sound) for build in (DAMAGES | OTHERS).values()] + lies
    cases += [sealed.sealed(case) for case in lies]
    cases += [sealed.sealed(changed(sound, change)) for change in REFUSED.values()]
    assert len(cases) > 150
    (folder / "cases").mkdir()
    for number, case in enumerate(cases):
        (folder / "cases" / f"{number:03}.onnx").write_bytes(case)
    command: list[str | Path] = [
        sys.executable,
        Path(__file__).with_name("limited.py"),
        runtime.__name__,
        "session",
        folder / "cases",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found["outcomes"]) == len(cases)
    assert set(found["outcomes"].values()) == {"ValueError"}
    assert found["grown"] < 200 * 2**20


class Touch:
    """What unpickling turns into an empty file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(sound: bytes, folder: Path) -> None:
    payload = pickle.dumps(Touch(folder / "ran"))

    def filled(model: onnx.ModelProto) -> None:
        weight(model).raw_data = payload

    for case in (payload, sealed.sealed(payload), sealed.sealed(changed(sound, filled)), sound[:SEAL] + payload):
        refusal(folder, case)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("seed", range(4))
def test_flips_under_a_right_seal_are_refused_or_run(seed: int, sound: bytes, folder: Path) -> None:
    """Of a weight, another weight comes out; nobody can tell that."""
    rng, outcomes, path = np.random.default_rng(seed), [], folder / "model.onnx"
    for _ in range(25):
        damaged = bytearray(sound[SEAL:])
        for place in rng.integers(len(damaged), size=rng.integers(1, 4)):
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(sealed.sealed(bytes(damaged)))
        try:
            runtime.session(path)(np.ones((2, 1, 6, 6), np.float32))
        except ValueError:
            outcomes.append("refused")
        else:
            outcomes.append("run")
    assert set(outcomes) == {"refused", "run"}


def test_a_field_too_many_is_counted_not_kept() -> None:
    with pytest.raises(ValueError, match="more than 250,000 fields"):
        structure.check(memoryview(b"\x08\x0a" * 300_000), Path())
