"""A real run's deploy folder, its scripts run where nothing of this package can be imported."""

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from lightning_compress.core.files import sha256
from lightning_compress.data.digits import Digits
from lightning_compress.data.labelled import Batching, LabelledData
from lightning_compress.data.samples import Samples
from lightning_compress.deploy import folder as deploy
from lightning_compress.deploy import measure as measure_script
from lightning_compress.deploy import predict as predict_script
from lightning_compress.export import runtime
from lightning_compress.export.verify import ExportMismatchError
from lightning_compress.run import config
from lightning_compress.run.api import load
from lightning_compress.run.train import train

OVERRIDES = ["model.width=0.5", "epochs=2", "measure.latency=false", "measure.onnx=true", "wandb.mode=disabled"]
ABOUT = deploy.About("digits, trial 7", {"val/accuracy": "0.97", "packed file": "4 kB"}, "the way back")
FILES = {
    *("model.onnx", "dense.onnx", "model.lcz", "samples.npz", "preprocessing.json", "labels.json"),
    *("predict.py", "measure.py", "README.txt", "checksums.sha256"),
}
pytestmark = pytest.mark.xdist_group("deployed")  # the folder is written once


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trial-7"
    train(config.compose([*OVERRIDES, "prune=gradual", "quantize=affine"]), folder)
    return folder


@pytest.fixture(scope="module")
def written(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("deploy") / "a" / "b"
    deploy.write(run, run / "dense.onnx", to, ABOUT)
    return to


@pytest.fixture
def elsewhere(written: Path, tmp_path: Path) -> Path:
    """A copy, as on another device."""
    return shutil.copytree(written, tmp_path / "moved")


def _called(folder: Path, script: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script with an empty folder to stand in, which is all that it could import from."""
    empty = folder.parent / "empty"
    empty.mkdir(exist_ok=True)
    argv = [sys.executable, "-P", "-W", "error", str(folder / script), *map(str, words)]
    return subprocess.run(argv, cwd=empty, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)


def _refused(folder: Path, script: str, *words: object) -> str:
    done = _called(folder, script, *words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "preprocessing.json").read_text())
    return facts


def test_it_holds_what_is_needed_and_its_checksums(run: Path, written: Path) -> None:
    assert {path.name for path in written.iterdir()} == FILES
    assert [path for path in written.parent.iterdir() if path != written] == [], "nothing is left beside it"
    sums = dict(line.split("  ")[::-1] for line in (written / "checksums.sha256").read_text().splitlines())
    assert set(sums) == FILES - {"checksums.sha256"}
    for name, digest in sums.items():
        assert hashlib.sha256((written / name).read_bytes()).hexdigest() == digest
    for name in ("model.onnx", "dense.onnx", "model.lcz"):
        assert (written / name).read_bytes() == (run / name).read_bytes()
    assert json.loads((written / "labels.json").read_text()) == [str(digit) for digit in range(10)]
    lines = (written / "README.txt").read_text().splitlines()
    assert len(lines) == 5
    assert lines[0] == "digits, trial 7: val/accuracy 0.97, packed file 4 kB."
    assert "measure.py --batch-size 64 --threads 1" in lines[3]
    assert "`the way back`" in lines[3]


def test_samples_are_validation_digits_with_the_outputs_of_pytorch(run: Path, written: Path) -> None:
    part, facts = Digits().val_part, _facts(written)
    with np.load(written / "samples.npz") as samples:
        pixels, labels, outputs = (torch.from_numpy(samples[name]) for name in ("pixels", "labels", "outputs"))
    stored = part.fetch(torch.arange(len(part.labels)))
    for picture, label in zip(pixels, labels, strict=True):
        same = (stored == picture).flatten(1).all(1)
        assert same.any()
        assert label in part.labels[same]
    assert len(pixels) == 32
    assert len(set(labels.tolist())) > 5, "spread over the split"
    assert (facts["input_shape"], facts["layout"], facts["pixel_dtype"]) == ([1, 8, 8], "NCHW", "float32")
    inputs = (pixels * facts["pixel_scale"] - facts["mean"][0]) / facts["std"][0]
    torch.testing.assert_close(load(run / "model.lcz")(inputs), outputs, rtol=1e-4, atol=1e-4)


def test_predict_checks_itself_and_classifies(elsewhere: Path) -> None:
    for option in ((), ("--float-kernels",)):
        done = _called(elsewhere, "predict.py", "--check", *option)
        assert done.returncode == 0, done.stderr
        assert "32 samples: largest gap to PyTorch" in done.stdout
    with np.load(elsewhere / "samples.npz") as samples:
        np.save(elsewhere / "some.npy", samples["pixels"][:5])
        wanted = samples["outputs"][:5]
    done = _called(elsewhere, "predict.py", elsewhere / "some.npy")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(index) for index in wanted.argmax(1)]
    shares = torch.from_numpy(wanted).softmax(1).max(1).values
    assert [float(row[1]) for row in rows] == pytest.approx(shares.tolist(), abs=0.02)


def test_predict_notices_another_model_and_wrong_inputs(elsewhere: Path) -> None:
    np.save(elsewhere / "narrow.npy", np.zeros((2, 1, 8, 4), np.float32))
    assert "expected pixels of shape [number, *[1, 8, 8]]" in _refused(
        elsewhere, "predict.py", elsewhere / "narrow.npy"
    )
    assert "nowhere.npy" in _refused(elsewhere, "predict.py", "nowhere.npy")
    assert "one .npy file of pixels or tokens, one .txt file of texts, or --check" in _refused(elsewhere, "predict.py")
    facts = _facts(elsewhere)
    (elsewhere / "preprocessing.json").write_text(json.dumps(facts | {"mean": [3.0]}))
    assert "of which rounding explains" in _refused(elsewhere, "predict.py", "--check")
    (elsewhere / "preprocessing.json").write_text(json.dumps(facts))
    (elsewhere / "samples.npz").unlink()
    assert "samples.npz" in _refused(elsewhere, "predict.py", "--check")


def test_damaged_models_are_not_opened(elsewhere: Path) -> None:
    """Damage that is an ONNX file still: with other weights, that of the dense network, and one cut short."""
    model = (elsewhere / "model.onnx").read_bytes()
    flipped = bytearray(model)
    flipped[len(model) // 2] ^= 1
    for case in (bytes(flipped), (elsewhere / "dense.onnx").read_bytes(), model[:1000], b""):
        (elsewhere / "model.onnx").write_bytes(case)
        for words in (("predict.py", "--check"), ("measure.py",)):
            assert "model.onnx is damaged, or not the file that checksums.sha256 lists" in _refused(elsewhere, *words)
    (elsewhere / "model.onnx").write_bytes(model)
    (elsewhere / "dense.onnx").write_bytes(model)
    assert "dense.onnx is damaged" in _refused(elsewhere, "measure.py")
    (elsewhere / "checksums.sha256").unlink()
    assert "checksums.sha256" in _refused(elsewhere, "predict.py", "--check")


def test_measure_writes_what_it_found(elsewhere: Path) -> None:
    words = ("--batch-size", 2, "--rounds", 5, "--device", "My Board, rev. 2")
    done = _called(elsewhere, "measure.py", *words)
    assert done.returncode == 0, done.stderr
    assert "My Board, rev. 2: model.onnx" in done.stdout
    found = json.loads((elsewhere / "latency-my-board-rev-2.json").read_text())
    assert (found["device"], found["threads"], found["batch_size"], found["latency_rounds"]) == (
        *("My Board, rev. 2", 1),
        *(2, 5),
    )
    assert found["runtime"] == runtime.name
    assert found["kernels"] in ("integer", "float")
    assert 0 < found["latency_p10_ms"] <= found["latency_ms"] <= found["latency_p90_ms"]
    for name in ("model", "dense"):
        assert found[f"{name}_sha256"] == sha256(elsewhere / f"{name}.onnx")
    (elsewhere / "dense.onnx").unlink()
    assert "dense.onnx" in _refused(elsewhere, "measure.py", *words)
    assert "from 1 up" in _refused(elsewhere, "measure.py", "--rounds", 0)


def test_the_ratio_is_the_median_of_ratios_of_the_faster_kernels() -> None:
    dense = np.array([1.0, 2.0, 4.0]) / 1e3
    found = measure_script.summary(
        {
            ("dense", "integer"): dense,
            ("model", "integer"): np.array([2.0, 1.0, 1.0]) / 1e3,
            ("model", "float"): dense * 0.6,
        }
    )
    assert (found["kernels"], found["latency_ratio"]) == ("integer", 0.5)
    assert (found["latency_ms"], found["dense_latency_ms"]) == pytest.approx((1.0, 2.0))
    assert (found["latency_p10_ms"], found["latency_p90_ms"]) == pytest.approx((1.0, 1.8))


@pytest.mark.parametrize("kernels", ["integer", "float"])
@pytest.mark.parametrize("threads", [1, 2])
def test_measure_opens_models_as_the_study_does(kernels: runtime.Kernels, threads: int, written: Path) -> None:
    ours = runtime._options(threads, kernels)
    seen: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: list[str], disabled_optimizers: list[str]) -> None:
            assert disabled_optimizers == runtime._DISABLED
            seen.append(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_script, "HERE", written)
        patch.setattr(onnxruntime, "InferenceSession", Session)
        measure_script.session("model", kernels, threads)
    for name in ("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "graph_optimization_level"):
        assert getattr(seen[0], name) == getattr(ours, name)
    spin = "session.intra_op.allow_spinning"
    level = "session.qdq_matmulnbits_accuracy_level"
    for key in ("session.x64quantprecision", "session.disable_quant_qdq", spin, level):
        assert _entry(seen[0], key) == _entry(ours, key)


def _entry(options: Any, key: str) -> str | None:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return None


@pytest.mark.parametrize("script", deploy.SCRIPTS)
def test_scripts_import_numpy_onnxruntime_and_the_standard_library_only(script: str, written: Path) -> None:
    tree = ast.parse((written / script).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    assert {"numpy", "onnxruntime"} <= roots
    texts = {"tokenizers"} if script == "predict.py" else set()  # imported where there are lines of text alone
    assert roots - {"numpy", "onnxruntime"} - texts <= set(sys.stdlib_module_names)


def test_a_folder_is_written_again_but_nothing_else_written_over(run: Path, written: Path, tmp_path: Path) -> None:
    (written / "latency-board.json").write_text("{}")
    assert deploy.write(run, run / "dense.onnx", written, ABOUT)["agreement"] == 1.0
    assert (written / "latency-board.json").exists()
    (written / "latency-board.json").unlink()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(ValueError, match="holds something else already"):
        deploy.write(run, run / "dense.onnx", other, ABOUT)
    with pytest.raises(ValueError, match="is a file"):
        deploy.write(run, run / "dense.onnx", other / "mine.txt", ABOUT)
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_an_export_that_computes_something_else_is_not_written(run: Path, tmp_path: Path) -> None:
    wrong = shutil.copytree(run, tmp_path / "wrong")
    shutil.copy(run / "dense.onnx", wrong / "model.onnx")
    with pytest.raises(ExportMismatchError, match="of which rounding explains"):
        deploy.write(wrong, run / "dense.onnx", tmp_path / "to", ABOUT)
    (wrong / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*model\.onnx"):
        deploy.write(wrong, run / "dense.onnx", tmp_path / "to", ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


class Bytes(LabelledData):
    """Colour pictures in uint8."""

    def read_train_val(self) -> tuple[Samples, Samples]:
        pixels = torch.arange(10 * 3 * 4 * 4).view(10, 3, 4, 4).byte()
        labels, names = torch.arange(5) % 2, ["cat", "dog"]
        return Samples(pixels[:5], labels, names), Samples(pixels[5:], labels, names)

    def read_test(self) -> Samples:
        raise NotImplementedError


def test_preprocessing_is_that_of_the_data_module(written: Path, tmp_path: Path) -> None:
    data = Bytes(Batching(batch_size=2))
    pixels, targets, facts = deploy._pixels(data)
    assert torch.equal(pixels, data.val_part.fetch(torch.arange(5)))
    assert targets.tolist() == [0, 1, 0, 1, 0]
    assert (facts["pixel_dtype"], facts["pixel_scale"], len(facts["mean"])) == ("uint8", 1 / 255, 3)
    assert torch.equal(deploy._inputs(pixels, facts), data.normalize(pixels))
    seen: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: list[str], disabled_optimizers: list[str]) -> None:
            assert disabled_optimizers == runtime._DISABLED

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name="x")]

        def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
            seen.append(feed["x"])
            return [feed["x"]]

    (tmp_path / "preprocessing.json").write_text(json.dumps(facts))
    (tmp_path / "model.onnx").touch()
    (tmp_path / "checksums.sha256").write_text(f"{sha256(tmp_path / 'model.onnx')}  model.onnx\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_script, "HERE", tmp_path)
        patch.setattr(onnxruntime, "InferenceSession", Session)
        predict_script.predict(pixels.numpy())
    assert seen[0].dtype == np.float32
    assert np.array_equal(seen[0], data.normalize(pixels).numpy())


class Foreign:
    """A data module that says nothing of its preprocessing."""

    num_classes = 2

    def prepare_data(self) -> None:
        self.batches = [(torch.ones(40, 3, 2, 2), torch.zeros(40).long())]

    def setup(self, stage: str) -> None:
        assert stage == "fit"

    def val_dataloader(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return self.batches


def test_batches_of_other_data_modules_are_taken_as_they_are() -> None:
    pixels, targets, facts = deploy._pixels(Foreign())
    assert (len(pixels), len(targets), facts["input_shape"]) == (32, 32, [3, 2, 2])
    assert torch.equal(deploy._inputs(pixels, facts), pixels)
