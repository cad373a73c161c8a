"""A text classifier from Parquet to the files that are deployed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import onnxruntime
import pytest
import torch

from lightning_compress.data.text import TextData
from lightning_compress.data.vocabulary import loaded
from lightning_compress.deploy import folder as deploy
from lightning_compress.export import runtime
from lightning_compress.run import api, build, timing
from lightning_compress.run.compare import compare
from lightning_compress.run.config import compose
from lightning_compress.run.measure import export_dense
from lightning_compress.run.result import Result
from lightning_compress.run.train import train

GOOD, BAD = ["fine", "good", "great", "fun"], ["bad", "dull", "awful", "flat"]
ABOUT = deploy.About("films", {"val/accuracy": "1"})
pytestmark = pytest.mark.xdist_group("films")  # the run is made once


def write_films(folder: Path) -> None:
    """Texts of 2 to 11 words, one of which tells the class."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 240), ("validation", 40)):
        labels = draw.integers(0, 2, count)
        texts = []
        for label in labels:
            words = ["the", "film", "is", "a", "plot"] * 2
            words = words[: draw.integers(1, 11)]
            words.insert(draw.integers(0, len(words) + 1), (BAD, GOOD)[label][draw.integers(4)])
            texts.append(" ".join(words))
        rows = {"sentence": texts, "label": labels.tolist()}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")


def _configure(folder: Path, *overrides: str) -> dict[str, Any]:
    return compose([
        *("data=sst2", "data.root=null", f"data.source={folder}", "data.vocab_size=290", "data.max_length=16"),
        *("data.batch_size=16", "epochs=4", "optimizer.lr=0.01", "wandb.mode=disabled", "evaluate_test=true"),
        *("model=text_transformer", "model.width=0.25", "speed.precision=32-true"),
        *("measure.latency=false", "measure.onnx=true", "measure.rounds=1", "measure.batch_size=3"),
        *overrides,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_films(folder)
    return folder


@pytest.fixture(scope="module")
def run(films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    joint = [
        "model.depth=1",
        "prune=gradual",
        "methods.prune.sparsity.last=0.5",
        "methods.prune.every=4",
        "quantize=affine",
    ]
    return folder, train(_configure(films, *joint), folder)


def test_the_model_learns_from_the_data_what_tokens_there_are(films: Path) -> None:
    data = TextData(str(films), text_column="sentence", test="validation", vocab_size=290, max_length=16)
    assert build.facts(data) == {"num_classes": 2, "vocab_size": 290, "padding_id": 0, "max_length": 16}


def test_it_learns_and_is_counted(run: tuple[Path, Result]) -> None:
    _, result = run
    assert result.metrics["val/accuracy"] > 0.9
    assert result.metrics["test/accuracy"] > 0.9
    assert result.cost["macs"] == 16 * (4 * 32 * 32 + 2 * 32 * 128) + 32 * 2, "of a text of max_length"
    assert result.cost["sparsity"] > 0.2
    assert result.files["tokenizer"] == "tokenizer.json"


def test_the_packed_file_and_the_tokenizer_are_all_one_needs(run: tuple[Path, Result]) -> None:
    folder, _ = run
    model, vocabulary = api.load(folder / "model.lcz"), loaded(folder / "tokenizer.json")
    ids, _ = vocabulary.encode(["the film is good", "awful"], max_length=16)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for length in (6, 11, 16):  # any length will do
        outputs = model(ids[:, :length])
        assert outputs.argmax(1).tolist() == [1, 0]
        (found,) = session.run(None, {"input": ids[:, :length].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs, atol=0.2, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["text_lstm", "text_gru"])
def test_recurrent_networks_are_exported_for_any_length(films: Path, tmp_path: Path, model: str) -> None:
    config = _configure(films, f"model={model}")
    data = build.data(config)
    net = build.model(build.architecture(config["model"], data), seed=0).eval()
    session = runtime.session(export_dense(net, data.example, tmp_path / "net.onnx"))
    ids, _ = data.vocabulary.encode(["the film is good", "awful"], max_length=16)
    for length in (6, 16):
        torch.testing.assert_close(torch.from_numpy(session(ids[:, :length].numpy())), net(ids[:, :length]))


@pytest.mark.slow
def test_it_is_timed_later_on_tokens(run: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = run
    assert timing.time_run(folder)["latency_ms"] > 0
    again = api.export(folder / "model.lcz", tmp_path / "again.onnx")
    found = compare([again, folder / "model.lcz"], batch_size=2, rounds=1)
    assert not found.left_out


def test_its_deploy_folder_has_the_tokenizer(run: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = run
    deploy.write(folder, folder / "dense.onnx", tmp_path / "deploy", ABOUT)
    assert (tmp_path / "deploy/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    facts = json.loads((tmp_path / "deploy/preprocessing.json").read_text())
    assert (facts["input_dtype"], facts["layout"]) == ("int64", "batch first")
    (tmp_path / "texts.txt").write_text("the film is good\nawful\n")
    for words, expected in ((["texts.txt"], ["1", "0"]), (["--check"], ["12"])):
        argv = [sys.executable, "-P", "-W", "error", str(tmp_path / "deploy/predict.py"), *words]
        options: dict[str, Any] = {"cwd": tmp_path, "env": {"OMP_NUM_THREADS": "1"}, "text": True}
        done = subprocess.run(argv, capture_output=True, check=False, **options)
        assert [line.split()[0] for line in done.stdout.splitlines()] == expected, done.stderr
