"""Every runtime is held to the same: right numbers on real inputs, one answer to what is wrong."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from torch import Tensor

from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.export import chooser, latency, runtime, verify
from lightning_compress.export.chooser import Deployable, Runtime
from lightning_compress.export.onnx import activation_bits, export

Make = Callable[[int | None, int | None], Compact]
BY_NAME = {one.name: one for one in chooser.RUNTIMES}


def _row(one: Runtime) -> Any:
    """A row of the table below; what is not here is skipped with its reason, what takes seconds is slow."""
    why = one.why_not()
    marks = [pytest.mark.skipif(why is not None, reason=str(why))]
    return pytest.param(one, id=one.name, marks=[*marks, pytest.mark.slow] if one.name == "torch/compiled" else marks)


every = pytest.mark.parametrize("one", [_row(one) for one in chooser.RUNTIMES])


@pytest.fixture(scope="session")
def models(residual: Make, digits: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Deployable]:
    folder = tmp_path_factory.mktemp("models")
    made = {"floats": residual(None, None), "integers": residual(7, 8)}
    return {
        name: Deployable(export(compact, digits[:2], folder / f"{name}.onnx"), compact)
        for name, compact in made.items()
    }


@every
@pytest.mark.parametrize("kind", ["floats", "integers"])
@pytest.mark.parametrize("size", [1, 64])
def test_it_computes_the_model(
    size: int, kind: str, one: Runtime, models: dict[str, Deployable], digits: Tensor
) -> None:
    model = models[kind]
    assert model.compact is not None
    found = verify.compare(model.compact.model, one.open(model, 1), digits[:size])
    verify.check(found, verify.tolerance(model.compact.model) + one.slack)


@every
def test_it_wants_a_thread_and_a_model(one: Runtime, models: dict[str, Deployable], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least 1 thread, got 0"):
        one.open(models["integers"], 0)
    with pytest.raises((FileNotFoundError, ValueError), match=r"no ONNX file at .*absent\.onnx|give the packed"):
        one.open(Deployable(tmp_path / "absent.onnx"), 1)


@every
def test_its_title_names_it(one: Runtime) -> None:
    assert one.title().startswith(one.family.replace("cuda", "onnxruntime").replace("tensorrt", "onnxruntime"))
    assert [other for other in chooser.RUNTIMES if other is not one and other.title == one.title] == []


def test_names() -> None:
    assert [one.name for one in chooser.named(chooser.DEFAULT)] == ["onnxruntime/integer", "onnxruntime/float"]
    assert [one.name for one in chooser.named(["torch/eager", "openvino/f32"])] == ["openvino/f32", "torch/eager"]
    assert chooser.named(["all"]) == list(chooser.RUNTIMES)
    with pytest.raises(ValueError, match="no runtime 'openvin': did you mean 'openvino'"):
        chooser.named(["onnxruntime", "openvin"])
    with pytest.raises(ValueError, match="no runtime '': there are onnxruntime, openvino, "):
        chooser.named([""])
    with pytest.raises(ValueError, match="expected at least one runtime of onnxruntime"):
        chooser.named([])


def test_what_is_not_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^openvino cannot run here: openvino is not installed: pip install"):
        chooser.here(["onnxruntime", "openvino"])
    assert "openvino" not in {one.family for one in chooser.here(["all"])}
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"^tensorrt cannot run here: .* built without Tensorrt.*onnxruntime-gpu"):
        chooser.here(["tensorrt"])


def test_a_provider_that_does_not_start_is_no_cpu_in_disguise(
    models: dict[str, Deployable], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(ValueError, match="CUDAExecutionProvider does not start here"):
        BY_NAME["cuda"].open(models["floats"], 1)


def test_the_file_says_what_rounding_explains(residual: Make, digits: Tensor, tmp_path: Path) -> None:
    for bits in ((None, None), (7, 6)):
        compact = residual(*bits)
        path = export(compact, digits[:2], tmp_path / "m.onnx")
        there = {module.bits for module in compact.model.modules() if isinstance(module, FixedQuantizer)}
        assert set(activation_bits(path)) == there
        # The file rounds before and after a maximum pooling.
        assert verify.tolerance(compact.model) <= Deployable(path).tolerance() <= 1.5 * verify.tolerance(compact.model)
        assert Deployable(path, compact).tolerance() == verify.tolerance(compact.model)


def _fake(name: str, factor: float) -> Runtime:
    """A runtime whose outputs are off by a factor."""

    def opened(model: Deployable, threads: int) -> chooser.Session:
        right = runtime.session(model.onnx, threads)
        return lambda batch: factor * right(batch)

    return Runtime(name, lambda: f"{name} 1.0", lambda: None, opened)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[float]]:
    """Seconds of each candidate, in place of a clock."""
    seconds: dict[tuple[str, str], list[float]] = {}
    monkeypatch.setattr(latency, "sample", lambda calls, rounds: {key: seconds[key] for key in calls})
    return seconds


def test_the_fastest_wins_and_what_is_wrong_takes_no_part(
    models: dict[str, Deployable], digits: Tensor, stopped: dict[tuple[str, str], list[float]]
) -> None:
    files = {name: replace(model, compact=None) for name, model in models.items()}
    runtimes = [
        BY_NAME["onnxruntime/integer"],
        BY_NAME["onnxruntime/float"],
        _fake("right", 1.0),
        _fake("wrong", 1.5),
        BY_NAME["torch/eager"],
    ]
    stopped |= {
        ("floats", "onnxruntime/integer"): [0.008, 0.009, 0.010],
        ("floats", "right"): [0.004, 0.005, 0.004],
        ("integers", "onnxruntime/integer"): [0.003, 0.003, 0.003],
        ("integers", "onnxruntime/float"): [0.002, 0.002, 0.002],
        ("integers", "right"): [0.004, 0.004, 0.004],
    }
    found = chooser.race(files, runtimes, digits.numpy(), threads=1, rounds=3)
    assert set(found.latencies) == set(stopped), "a float model has no integers to make floats of"
    assert found.fastest("floats").runtime == "right 1.0"
    assert found.fastest("integers").runtime == f"{runtime.name}, float kernels"
    assert found.fastest("floats").ratio == 1.0
    assert found.fastest("integers").ratio == pytest.approx(0.002 / 0.004)
    assert found.latencies["floats", "onnxruntime/integer"].ratio == pytest.approx(2.0)
    assert "off by 0.5 of its outputs' size" in found.left_out["floats", "wrong"]
    assert found.left_out["integers", "torch/eager"].endswith("give the packed .lcz file")
    assert found.gaps["floats", "right"] < 1e-5
    with pytest.raises(ValueError, match=r"no runtime can run floats: wrong: .*off by 0\.5"):
        chooser.race(files, [_fake("wrong", 1.5)], digits.numpy(), threads=1, rounds=3)


def test_a_race_of_all_that_is_here(models: dict[str, Deployable], digits: Tensor) -> None:
    there = [one for one in chooser.here(["all"]) if one.name != "torch/compiled"]
    found = chooser.race(models, there, digits[:4].numpy(), threads=1, rounds=2)
    assert found.left_out == {}
    assert {on for of, on in found.latencies if of == "integers"} == {one.name for one in there}
    assert {one.batch_size for one in found.latencies.values()} == {4}
    assert found.fastest("floats").ratio == 1.0
    assert found.gaps["integers", "torch/eager"] == 0.0


def test_a_missing_file_is_no_slow_runtime(tmp_path: Path) -> None:
    missing = {"a": Deployable(tmp_path / "absent.onnx")}
    with pytest.raises(FileNotFoundError, match=r"no ONNX file at .*absent\.onnx"):
        chooser.race(missing, list(chooser.RUNTIMES), np.zeros((1, 2), np.float32), threads=1, rounds=1)
