"""Wrong inputs at the command line: each is one clear line, a nonzero status, and nothing finished is lost."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from lightning_compress.cli import main
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import packed
from lightning_compress.models.small_conv import SmallConv

TINY = ["model.width=0.25", "epochs=1", "measure.latency=false", "wandb.mode=disabled"]
STUDY: dict[str, Any] = {
    "name": "tiny",
    "base": [text for text in TINY if not text.startswith("measure")],
    "objectives": {"val/accuracy": "max", "cost/packed_bytes": "min"},
    "space": {"optimizer.lr": {"low": 0.001, "high": 0.1, "log": True}},
    "trials": 2,
}

Refused = Callable[..., str]


def _tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no mistake may harm."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert main(["train", *TINY, "prune=gradual", "quantize=affine", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _nothing_finished_is_lost(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    before = _tree(finished)
    yield
    assert _tree(finished) == before


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], finished: Path) -> Refused:
    """Run a command that must fail; its one line."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "copy")


QUANTIZE = "lightning_compress.quantize.method.Quantize"
PRUNE = "lightning_compress.prune.method.Prune"
TEACHER = ["distill=kl", "model@teacher.model=small_conv", "teacher.epochs=1"]

# Overrides of `train`, and what the answer must say.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "key": (["epoch=3"], ["'epoch'", "did you mean 'epochs'?"]),
    "added key": (["+epoch=3"], ["'epoch'", "did you mean 'epochs'?"]),
    "no table": (["measure.onnx=true", "measure.table=cpu.json"], ["no latency table at cpu.json", "--out FILE"]),
    "nested key": (["measure.latencies=true"], ["'measure.latencies'", "did you mean 'measure.latency'?"]),
    "group": (["optimiser=sgd"], ["'optimiser'", "did you mean 'optimizer'?"]),
    "group option": (["quantize=afine"], ["quantize/afine", "did you mean 'affine'?"]),
    "argument": (["model.widht=2"], ["'widht'", "SmallConv", "did you mean 'width'?"]),
    "method argument": (["prune=gradual", "methods.prune.scor=magnitude"], ["'scor'", "did you mean 'score'?"]),
    "added argument": (["+model.widht=2"], ["'widht'", "did you mean 'width'?"]),
    "method that is off": (["methods.prune.every=2"], ["'methods.prune' is off", "prune=..."]),
    "trainer argument": (["trainer.stratgy=ddp"], ["'stratgy'", "did you mean 'strategy'?"]),
    "decided elsewhere": (["trainer.max_epochs=3"], ["trainer.max_epochs", "set epochs instead"]),
    "experiment": (["experiment=mnist/lenet5_jont"], ["did you mean 'mnist/lenet5_joint'?"]),
    "function name": (["prune=gradual", "methods.prune.score=magnitud"], ["did you mean 'magnitude'?"]),
    "group without an option": (
        ["scheduler=null"],
        ["scheduler must be one of constant, cosine, rounds, rounds_of_steps, steps; got 'null'"],
    ),
    "no value": (["data=images"], ["data.source needs a value"]),
    "runtime": (["measure.runtimes=[onnxruntim]"], ["measure.runtimes: no runtime", "did you mean 'onnxruntime'?"]),
    "runtime of models": (
        ["measure.runtimes=[onnxruntime,torch]", "measure.onnx=true"],
        ["torch runs PyTorch models", "onnxruntime, openvino, cuda, tensorrt"],
    ),
    "no runtime": (["measure.runtimes=[]"], ["measure.runtimes: expected at least one runtime of onnxruntime"]),
    "no equals sign": (["prune"], ["expected key=value, got 'prune'"]),
    "grammar": (["name=["], ["'name=['", "quotes"]),
    "word for a count": (["epochs=many"], ["epochs must be a count from 0 up; got 'many'"]),
    "no epochs": (["epochs=-1"], ["epochs must be a count from 0 up; got -1"]),
    "seed": (["seed=-1"], ["seed must be a whole number", "got -1"]),
    "not finite": (["optimizer.lr=nan"], ["optimizer.lr must be a finite number; got nan"]),
    "learning rate": (["optimizer.lr=-1"], ["Invalid learning rate: -1"]),
    "phase key": (["phases=[{method:[prune]}]"], ["'method'", "did you mean 'methods'?"]),
    "phase method": (["prune=gradual", "phases=[{methods:[prunes]}]"], ["'prunes'", "did you mean 'prune'?"]),
    "sparsity": (["prune=gradual", "methods.prune.sparsity.last=1.5"], ["sparsity", "[0, 1)", "got 1.5"]),
    "two amounts": (["prune=channel", "methods.prune.macs=0.5"], ["one of them; got", "'macs': 0.5"]),
    "budget": (["prune=channel_macs", "methods.prune.macs=50"], ["macs is the share that stays, in (0, 1]; got 50"]),
    "budget without a table": (
        ["prune=channel", "methods.prune.sparsity=null", "methods.prune.latency=0.5"],
        ["latency comes from a table", "measure.table=FILE"],
    ),
    "budget of zeros": (
        ["prune=channel_macs", "methods.prune.pattern=unstructured"],
        ["macs is saved by what is removed for real", "pattern=channel"],
    ),
    "budget too small": (["prune=channel_macs", "methods.prune.macs=0.0001"], ["a budget of", "cannot be met"]),
    "1 bit": (["quantize=affine", "methods.quantize.weight_bits=1"], ["weight_bits: expected 2 to 8 bits", "got 1"]),
    "9 bits": (
        ["quantize=affine", "methods.quantize.activation_bits=9"],
        ["activation_bits: Observed takes 1 to 8 bits", "got 9"],
    ),
    "temperature": ([*TEACHER, "methods.distill.temperature=-2"], ["temperature must be positive, got -2"]),
    "order": (
        [f"+methods.first={{_target_:{QUANTIZE}}}", f"+methods.second={{_target_:{PRUNE},sparsity:0.5}}"],
        ["out of stage order", "got [Quantize (NUMERICS), Prune (SPARSITY)], write [Prune, Quantize]"],
    ),
    "nothing to freeze": (
        ["freeze=profit"],
        ["Freeze: expected 2 layers with quantized weights or more", "put a Quantize"],
    ),
    "no layer": (["prune=gradual", "methods.prune.select='^block'"], ["Prune matched no layer", "'^block'", "names)"]),
    "excludes nothing": (["quantize=affine", "methods.quantize.exclude=[head]"], ["exclude='head' matches no layer"]),
    "only in a later phase": (
        ["prune=gradual", "methods.prune.select='^block'", "phases=[{methods:[]},{methods:[prune]}]"],
        ["Prune matched no layer"],
    ),
    "model for larger inputs": (["model=lenet5"], ["LeNet5 needs image_size >= 16, got 8"]),
    "model's arguments": (["model._target_=torch.nn.Linear"], ["torch.nn.Linear", "in_features"]),
    "model's inputs": (
        ["model._target_=torch.nn.Linear", "model.in_features=3", "model.out_features=2"],
        ["model Linear cannot take inputs of shape [1, 8, 8]"],
    ),
    "no teacher": (["distill=kl"], ["distillation needs a teacher", "model@teacher.model="]),
    "teacher's weights": ([*TEACHER, "teacher.weights=nowhere.pt"], ["no weights file at nowhere.pt"]),
    "weights": (["weights=nowhere.pt"], ["no weights file at nowhere.pt"]),
    "data folder": (["data=images", "data.source=./photos"], ["./photos is no folder"]),
    "W&B mode": (["wandb.mode=offlin"], ["unknown W&B mode 'offlin'", "did you mean 'offline'?"]),
    "accelerator": (["trainer.accelerator=tpus"], ["accelerator='tpus'"]),
    "precision": (["speed.precision=bf17"], ["bf17"]),
    "strategy": (["trainer.strategy=dpp"], ["strategy='dpp'"]),
    "os.system": (["model._target_=os.system"], ["'os.system' is not allowed", "allow=[my_package]"]),
    "subprocess": (["+methods.x._target_=subprocess.run"], ["'subprocess.run' is not allowed"]),
    "builtin": (["optimizer._target_=builtins.eval"], ["'builtins.eval' is not allowed"]),
    "own command line": (["model._target_=lightning_compress.cli.main"], ["is not allowed"]),
    "through a module": (
        ["model._target_=torch.nn.modules.module.torch.hub.load"],
        ["_target_ 'torch.nn.modules.module.torch.hub.load'"],
    ),
    "re-exported": (["model._target_=lightning_compress.data.source.Path"], ["it leads to pathlib"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_overrides(name: str, refused: Refused) -> None:
    overrides, expected = WRONG[name]
    base = [text for text in TINY if not text.startswith("model.") or "model" not in name]
    line = refused("train", *base, *overrides, "--out", "run")
    for part in expected:
        assert part in line
    assert not list(Path("run").glob("phase*")), "nothing was trained"


def _parquet(folder: Path, images: list[Any], labels: list[Any], feature: Any = None) -> Path:
    folder.mkdir()
    columns = {"image": images, "label": labels}
    kinds = datasets.Features({"image": feature or datasets.Image(), "label": datasets.Value("int64")})
    for split in ("train", "test"):
        datasets.Dataset.from_dict(columns, features=kinds).to_parquet(folder / f"{split}.parquet")
    return folder


def _pictures(number: int = 20, size: int = 8) -> list[Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (number, size, size), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


LABELS = [index % 2 for index in range(20)]


def _corrupt(folder: Path) -> None:
    _parquet(folder, _pictures(), LABELS)
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:200])


def _nan(folder: Path) -> None:
    arrays = np.random.default_rng(0).random((20, 8, 8), np.float32)
    arrays[7, 3, 3] = np.nan
    _parquet(folder, list(arrays), LABELS, datasets.Array2D((8, 8), "float32"))


def _no_labels(folder: Path) -> None:
    _parquet(folder, _pictures(), [*LABELS[:19], None])


def _sizes_differ(folder: Path) -> None:
    _parquet(folder, [*_pictures(19), *_pictures(1, 9)], LABELS)


def _empty(folder: Path) -> None:
    folder.mkdir()


DATA: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "corrupt": (_corrupt, [], ["(train) cannot be read"]),
    "nan": (_nan, ["data.image_column=image"], ["row 7", "holds NaN or infinite values"]),
    "label missing": (_no_labels, [], ["'label'", "1 of 20 missing"]),
    "label column": (_no_labels, ["data.label_column=labels"], ["no column 'labels'", "did you mean 'label'?"]),
    "sizes": (_sizes_differ, [], ["row 19", "(1, 9, 9)", "size=[height, width]"]),
    "empty folder": (_empty, [], ["photos"]),
}


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, refused: Refused, tmp_path: Path) -> None:
    make, overrides, expected = DATA[name]
    make(tmp_path / "photos")
    line = refused("train", *TINY, "data=images", f"data.source={tmp_path / 'photos'}", *overrides, "--out", "run")
    for part in expected:
        assert part in line


SCANS: dict[str, tuple[list[str], list[str]]] = {
    "no weights": (["model.width=0.25"], ["trained weights: give weights=FILE, or the folder of a finished run"]),
    "no run": (["."], ["result.json"]),
    "no scan": (["done", "--scan", "bit"], ["no 'bit' in --scan", "did you mean 'bits'?"]),
    "batches": (["done", "--batches", "0"], ["--batches counts batches", "from 1 up; got 0"]),
    "no file": (["nothing.json", "--drop", "1"], ["nothing.json"]),
    "not a scan": (["done/result.json", "--drop", "1"], ["result.json is no sensitivity scan"]),
    "drop": (["scan.json", "--drop", "-1"], ["--drop counts points of accuracy", "got -1"]),
    "misspelt": (["model.widht=2"], ["did you mean 'width'?"]),
}


@pytest.mark.parametrize("name", SCANS)
def test_sensitivity(name: str, refused: Refused, finished: Path) -> None:
    words, expected = SCANS[name]
    scan = {"schema": 1, "name": "a", "base": {"accuracy": 1.0}, "scans": {}, "left_out": {}}
    Path("scan.json").write_text(json.dumps(scan))
    Path("done").symlink_to(finished)
    line = refused("sensitivity", *words)
    for part in expected:
        assert part in line


def test_output_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    line = refused("train", *TINY, "--out", tmp_path / "taken")
    assert "cannot write to" in line
    assert "taken" in line
    assert "choose another folder" in line
    assert "cannot write to" in refused("train", *TINY, "--out", tmp_path / "taken/below")
    assert (tmp_path / "taken").read_text() == "a file"


def test_truncated_checkpoint(refused: Refused, copy: Path) -> None:
    (copy / "result.json").unlink()
    checkpoint = copy / "phase0.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    argv = ("train", *TINY, "prune=gradual", "quantize=affine", "--out", copy)
    line = refused(*argv)
    assert f"cannot read checkpoint {checkpoint}" in line
    assert "delete it to start over" in line
    checkpoint.unlink()
    assert main([str(argument) for argument in argv]) == 0


def test_teacher_weights_of_another_network(refused: Refused, tmp_path: Path) -> None:
    torch.save(SmallConv(width=2.0).state_dict(), tmp_path / "wide.pt")
    line = refused("train", *TINY, *TEACHER, f"teacher.weights={tmp_path / 'wide.pt'}", "--out", "run")
    assert "wide.pt does not fit the model" in line


def test_corrupt_weights(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 but no more")
    assert "cannot read" in refused("train", *TINY, f"weights={tmp_path / 'w.pt'}", "--out", "run")


def test_weights_that_are_a_pickle_of_code(refused: Refused, tmp_path: Path) -> None:
    torch.save({"state_dict": os.system}, tmp_path / "w.pt")
    assert "objects other than tensors" in refused("train", *TINY, f"weights={tmp_path / 'w.pt'}", "--out", "run")


def test_folder_of_another_run(refused: Refused, finished: Path) -> None:
    line = refused("train", *TINY, "seed=1", "--out", finished)
    assert "another configuration" in line
    assert "seed" in line
    assert "choose another folder" in line


def test_damaged_result(refused: Refused, copy: Path) -> None:
    whole = (copy / "result.json").read_text()
    argv = ("train", *TINY, "prune=gradual", "quantize=affine", "--out", copy)
    for spoilt in (whole[:100], "[]", json.dumps({"schema": 99}), json.dumps({"schema": 1, "nme": "x"})):
        (copy / "result.json").write_text(spoilt)
        line = refused(*argv)
        assert "result.json" in line
        assert "remove that file" in line
    (copy / "config.json").write_text("{")
    assert "config.json is damaged" in refused(*argv)


def test_a_loss_that_becomes_nan_keeps_the_checkpoint_before(refused: Refused, copy: Path) -> None:
    (copy / "result.json").unlink()
    saved = torch.load(copy / "phase0.ckpt", weights_only=True)
    name = next(key for key in saved["state_dict"] if key.endswith("original"))
    saved["state_dict"][name].fill_(torch.nan)
    torch.save(saved, copy / "phase0.ckpt")
    config = json.loads((copy / "config.json").read_text())
    config |= {"epochs": 3, "teacher": {**config["teacher"], "epochs": 3}}
    (copy / "config.json").write_text(json.dumps(config))
    before = (copy / "phase0.ckpt").read_bytes()
    base = [text for text in TINY if text != "epochs=1"]
    line = refused("train", *base, "epochs=3", "prune=gradual", "quantize=affine", "--out", copy)
    assert "became NaN in epoch 1" in line
    assert "lower the learning rate" in line
    assert (copy / "phase0.ckpt").read_bytes() == before


def test_huge_learning_rate(refused: Refused) -> None:
    assert "became NaN in epoch 0" in refused("train", *TINY, "optimizer.lr=1e30", "--out", "run")


def _study(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(STUDY | changes))  # YAML reads JSON
    return path


STUDIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "misspelt key": ({"trails": 4}, ["'trails'", "did you mean 'trials'?"]),
    "seed searched": ({"space": {"seed": [0, 1]}}, ["a seed is never searched", "confirm_seeds"]),
    "space key": ({"space": {"optimizer.lrr": [0.1, 0.2]}}, ["'lrr'", "did you mean 'lr'?"]),
    "space value": ({"space": {"epochs": [1, -1]}}, ["epochs must be a count from 0 up; got -1"]),
    "sampler": ({"sampler": "bayes"}, ["sampler must be one of tpe,", "got 'bayes'"]),
    "direction": ({"objectives": {"val/accuracy": "up"}}, ["max or min", "'up'"]),
    "test objective": ({"objectives": {"test/accuracy": "max"}}, ["select on the test split", "val/accuracy"]),
    "base": ({"base": [*TINY, "epoch=3"]}, ["did you mean 'epochs'?"]),
    "no latency": ({"base": TINY}, ["measure.latency=false", "take", "away"]),
    "no table": ({"base": [*STUDY["base"], "measure.table=cpu.json"]}, ["no latency table at cpu.json"]),
    "several processes": ({"base": ["trainer.devices=2"]}, ["launch", "processes: 2"]),
    "recipe": ({"enqueue": [{"optimizer.lrr": 0.1}]}, ["enqueue", "did you mean 'optimizer.lr'?"]),
    "hostile": ({"base": [*TINY, "model._target_=os.system"]}, ["'os.system' is not allowed"]),
}


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["sweep", "dry run"])
def test_studies(name: str, options: list[str], refused: Refused, tmp_path: Path) -> None:
    changes, expected = STUDIES[name]
    line = refused("sweep", _study(tmp_path / "tiny.yaml", **changes), *options)
    for part in expected:
        assert part in line
    assert not Path("runs/sweeps/tiny/runs").exists()


def test_study_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "did you mean 'digits'?" in refused("sweep", "digit")
    assert "no study file nowhere.yaml" in refused("sweep", "nowhere.yaml")
    assert "did you mean 'digits'?" in refused("report", "digit")
    line = refused("report", _study(tmp_path / "tiny.yaml"))
    assert "holds no study" in line
    assert not Path("reports").exists(), "no report of nothing"


def test_pick_from_a_study_without_a_front(refused: Refused, tmp_path: Path) -> None:
    file, folder = _kept_study(tmp_path)
    assert "no trial of the study in" in refused("pick", file, "--out", folder)
    assert "expected a share up to 1" in refused("pick", folder, "--min-accuracy", "97")
    assert "did you mean 'digits'?" in refused("pick", "digit")
    assert "holds no study" in refused("pick", file)
    assert "is no file that measure.py wrote" in refused("report", folder, "--latency", file)


def test_study_that_is_no_yaml(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: [")
    assert "is not readable YAML" in refused("sweep", tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("- just\n- a list\n")
    assert "must hold keys like name" in refused("sweep", tmp_path / "bad.yaml")


def test_study_folder_that_is_something_else(refused: Refused, finished: Path, tmp_path: Path) -> None:
    line = refused("sweep", _study(tmp_path / "tiny.yaml"), "--out", finished)
    assert "holds no study but is not empty" in line
    (tmp_path / "taken").write_text("a file")
    assert "taken" in refused("sweep", _study(tmp_path / "tiny.yaml"), "--out", tmp_path / "taken")
    assert "taken" in refused("sweep", _study(tmp_path / "tiny.yaml", report=str(tmp_path / "taken")))


def _kept_study(tmp_path: Path) -> tuple[Path, Path]:
    """A study file, and the folder of a sweep of it that has begun."""
    from lightning_compress.sweep import spec

    file, folder = _study(tmp_path / "tiny.yaml"), tmp_path / "study"
    folder.mkdir()
    data = {"schema": 1, "identity": "abcd", "created": "2024", "spec": spec.load(file).asdict()}
    (folder / "study.json").write_text(json.dumps(data))
    return file, folder


def test_corrupt_journal(refused: Refused, tmp_path: Path) -> None:
    file, folder = _kept_study(tmp_path)
    (folder / "journal.log").write_bytes(b"\x00 not a journal\n{}\n")
    assert "journal.log" in refused("sweep", file, "--out", folder)
    assert (folder / "journal.log").read_bytes() == b"\x00 not a journal\n{}\n"


def test_corrupt_ledger(refused: Refused, tmp_path: Path) -> None:
    file, folder = _kept_study(tmp_path)
    (folder / "ledger.jsonl").write_bytes(b"\x00 not a ledger\n{}\n")
    for command in ("sweep", "report"):
        assert "ledger.jsonl, line 1 is damaged" in refused(command, file, "--out", folder)
    assert "ledger.jsonl, line 1 is damaged" in refused("sweep", "status", folder)


def test_damaged_study_record(refused: Refused, tmp_path: Path) -> None:
    file, folder = _kept_study(tmp_path)
    for spoilt in ('{"spec"', "{}", '{"spec": {"nme": 1}, "identity": "", "created": ""}', "[]"):
        (folder / "study.json").write_text(spoilt)
        (folder / "journal.log").touch()
        assert "study.json is damaged" in refused("sweep", file, "--out", folder)
        assert "study.json is damaged" in refused("report", file, "--out", folder)


def test_study_of_another_space(refused: Refused, tmp_path: Path) -> None:
    _, folder = _kept_study(tmp_path)
    (folder / "ledger.jsonl").write_text('{"event": "ask", "trial": 0, "params": {}}\n')
    other = _study(tmp_path / "tiny.yaml", space={"optimizer.lr": [0.1, 0.2]})
    line = refused("sweep", other, "--out", folder)
    assert "space" in line
    assert "--fresh" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 9}, "is no latency table of schema 1, it has 9: write one with `lightning-compress latency-table"),
        ({"threads": "many"}, "is a damaged latency table"),
        ({"batch_size": 8}, "set measure.batch_size=8 measure.threads=1"),
        ({}, "does not price layer 'conv1', a conv 3x3 8x8 (float to float) of 1 channels in and 4 out: measure again"),
    ],
)
def test_latency_table_of_a_run(changes: dict[str, Any], said: str, refused: Refused) -> None:
    bench = {"schema": 1, "device": "a", "runtime": "b", "threads": 1, "batch_size": 64, "layers": [], "networks": []}
    Path("cpu.json").write_text(json.dumps({**bench, **changes}))
    assert said in refused("train", *TINY, "measure.onnx=true", "measure.table=cpu.json", "--out", "run")
    assert not list(Path("run").glob("phase*")), "nothing was trained"


def test_table(refused: Refused, tmp_path: Path) -> None:
    assert "no latency table at nowhere.json" in refused("latency-table", "--show", "nowhere.json")
    assert "did you mean 'resnet20'?" in refused("latency-table", "model=resnet200", "--out", "t.json")
    assert "--rounds from 1 up" in refused("latency-table", "--out", "t.json", "--rounds", "0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "name another folder" in refused("latency-table", "--export", "full")
    assert not Path("t.json").exists()


def test_measure(refused: Refused, finished: Path, tmp_path: Path) -> None:
    assert "no ONNX file at nowhere.onnx" in refused("measure", "nowhere.onnx")
    (tmp_path / "packed.onnx").write_bytes((finished / "model.lcz").read_bytes())
    assert "expected a whole ONNX model" in refused("measure", tmp_path / "packed.onnx")
    (tmp_path / "no.lcz").write_bytes(b"LCZ")
    assert "is not a sound compressed model" in refused("measure", tmp_path / "no.lcz")
    packed = finished / "model.lcz"
    assert "no runtime 'openvin': did you mean 'openvino'?" in refused("measure", packed, "--runtimes", "openvin")
    assert "expected at least 1 thread, got 0" in refused("measure", packed, "--threads", "0")
    (tmp_path / "empty.onnx").touch()
    assert "empty.onnx" in refused("measure", tmp_path / "empty.onnx")


def test_export(refused: Refused, finished: Path, copy: Path, tmp_path: Path) -> None:
    assert "nowhere.lcz" in refused("export", "nowhere.lcz", "--to", "m.onnx")
    whole = (copy / "model.lcz").read_bytes()
    for spoilt in (b"", whole[:50], whole[:60] + b"\x00" + whole[61:], b"PK" + whole):
        (copy / "model.lcz").write_bytes(spoilt)
        assert "is not a sound compressed model" in refused("export", copy / "model.lcz", "--to", "m.onnx")
    (tmp_path / "file").touch()
    assert "file" in refused("export", finished / "model.lcz", "--to", tmp_path / "file/m.onnx")
    assert not Path("m.onnx").exists()


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "touch pwned"},
        {"_target_": "lightning_compress.cli.main", "argv": ["train"]},
        {"_target_": "torch.nn.Sequential", "_args_": ["${oc.create:{_target_:os.system,command:touch pwned}}"]},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system", "command": "touch pwned"}]},
        {"_target_": "torch.nn.modules.module.torch.hub.load", "repo_or_dir": "x"},
        {"_target_": PRUNE, "sparsity": 0.5, "score": "my.function"},
    ],
    ids=str,
)
def test_packed_file_that_names_code(node: dict[str, Any], refused: Refused, tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2).eval()
    stored = {name: Stored(value.detach()) for name, value in net.named_parameters()}
    packed.write(Compact(net, stored), tmp_path / "evil.lcz", architecture={"model": node, "input_shape": [2]})
    line = refused("export", tmp_path / "evil.lcz", "--to", "m.onnx")
    assert "_target_" in line or "${" in line
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["tarin"], "invalid choice: 'tarin'"),
        (["train", "--epochs", "3"], "unrecognized arguments: --epochs"),
        (["sweep"], "arguments are required"),
        (["export", "m.lcz"], "required: --to"),
        (["measure", "m.onnx", "--threads", "two"], "invalid int value: 'two'"),
    ],
)
def test_commands_and_options(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert expected in last


def test_verbs_of_a_sweep(refused: Refused, tmp_path: Path) -> None:
    _, folder = _kept_study(tmp_path)
    assert "expected a study, got digits trials=4" in refused("sweep", "digits", "trials=4")
    assert "expected a study and a number of workers" in refused("sweep", "add-workers", folder)
    assert "expected a whole number from 1 up, got 'two'" in refused("sweep", "add-workers", folder, "two")
    assert "no process is running the study" in refused("sweep", "stop", folder)


def test_search_folder_without_anything(refused: Refused, tmp_path: Path) -> None:
    assert "has no folder experiments/ or sweeps/" in refused("train", *TINY, "--search-in", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["train", *TINY, "prune=gradual", "methods.prune.select='^block'"],
        ["export", "nowhere.lcz", "--to", "m.onnx"],
        ["sweep", "digit"],
    ],
    ids=lambda argv: str(argv[0]),
)
def test_in_a_process_of_its_own(argv: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightning_compress.cli", *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
