"""A language model from a plain text to the files that are deployed."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from lightning_compress.data.text_file import TextFile
from lightning_compress.data.vocabulary import loaded
from lightning_compress.deploy import folder as deploy
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.models.text_lm import TextLM
from lightning_compress.prune.method import Prune
from lightning_compress.run import api, build, sensitivity
from lightning_compress.run.config import compose
from lightning_compress.run.result import Result
from lightning_compress.run.targets import ConfigError
from lightning_compress.run.train import train

pytestmark = pytest.mark.xdist_group("language model")  # the run is made once
#: Each word tells the next.
CYCLE = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of words that go round."""
    path = tmp_path_factory.mktemp("texts") / "cycle.txt"
    path.write_text(f"{' '.join(CYCLE)}\n" * 300)
    return path


def _configure(text: Path, *overrides: str) -> dict[str, Any]:
    return compose([
        *("data=text_file", f"data.file={text}", "data.tokens=words", "data.length=11", "data.batch_size=4"),
        *("model=lstm_lm", "model.width=0.1", "model.layers=1", "model.dropout=0", "optimizer.lr=0.05"),
        *("epochs=3", "evaluate_test=true", "wandb.mode=disabled", "speed.precision=32-true"),
        *("measure.latency=false", "measure.onnx=true"),
        *overrides,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Pruned, quantized and taught in one run."""
    joint = [
        *("prune=gradual", "methods.prune.sparsity.last=0.5", "methods.prune.every=4", "quantize=affine"),
        *("distill=kl", "methods.distill.weight=0.5", "model@teacher.model=lstm_lm"),
        *("teacher.model.width=0.1", "teacher.model.layers=1", "teacher.model.dropout=0"),
    ]
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(_configure(text, *joint), folder)


def test_it_learns_what_follows(run: tuple[Path, Result], text: Path) -> None:
    _, result = run
    assert 1.0 < result.metrics["test/perplexity"] < 2.0, "by guessing it would be 6"
    assert result.metrics["val/perplexity"] == pytest.approx(math.exp(result.metrics["val/loss"]), rel=1e-5)
    assert result.history[-1]["val/perplexity"] == pytest.approx(result.metrics["val/perplexity"], rel=0.2)


def test_the_tied_weight_is_pruned_stored_and_counted_once(run: tuple[Path, Result]) -> None:
    folder, result = run
    vocabulary, features = len(loaded(folder / "tokenizer.json")), 20
    layer = 4 * (2 * features**2 + 2 * features)
    assert result.cost["params"] == vocabulary * features + layer + vocabulary
    assert result.cost["macs"] == 11 * (8 * features**2 + vocabulary * features), "of a window"
    model = api.load(folder / "model.lcz")
    assert isinstance(model, TextLM)
    assert model.fc.weight is model.embedding.weight
    assert float((model.fc.weight == 0).float().mean()) >= 0.5
    (embedding,) = [row for row in result.layers if row["name"] == "embedding"]
    assert embedding["weight_bits"] < 32


def test_perplexity_is_that_of_the_packed_file_by_hand(run: tuple[Path, Result], text: Path) -> None:
    folder, result = run
    model = api.load(folder / "model.lcz")
    part = build.data(result.config).test_part
    with torch.no_grad():
        shares = model(part.fetch(torch.arange(len(part.labels)))).softmax(1).double()
    of_right = [
        shares[row, int(token), place] for row, line in enumerate(part.labels) for place, token in enumerate(line)
    ]
    expected = math.exp(-sum(math.log(share) for share in of_right) / len(of_right))
    assert result.metrics["test/perplexity"] == pytest.approx(expected, rel=1e-4)


def test_the_onnx_file_takes_any_length(run: tuple[Path, Result]) -> None:
    folder, _ = run
    model, session = api.load(folder / "model.lcz"), onnxruntime.InferenceSession(folder / "model.onnx")
    assert isinstance(model, TextLM)
    for length in (1, 7, 30):
        ids = torch.randint(1, 7, (3, length))
        (found,) = session.run(None, {"input": ids.numpy()})
        assert found.shape == (3, model.fc.out_features, length)
        torch.testing.assert_close(torch.from_numpy(found), model(ids), atol=0.3, rtol=0.1)


def test_its_deploy_folder_tells_the_next_word(run: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = run
    deploy.write(folder, folder / "dense.onnx", tmp_path / "deploy", deploy.About("words", {"val/perplexity": "2"}))
    (tmp_path / "texts.txt").write_text("four five\nsix one two\n")
    for words, expected in ((["texts.txt"], ["six", "three"]), (["--check"], ["16"])):
        argv = [sys.executable, "-P", "-W", "error", str(tmp_path / "deploy/predict.py"), *words]
        options: dict[str, Any] = {"cwd": tmp_path, "env": {"OMP_NUM_THREADS": "1"}, "text": True}
        done = subprocess.run(argv, capture_output=True, check=False, **options)
        assert [line.split()[0] for line in done.stdout.splitlines()] == expected, done.stderr


@pytest.mark.slow
def test_in_python_the_data_says_what_it_is_for(text: Path, tmp_path: Path) -> None:
    data = TextFile(str(text), tokens="words", length=12)
    net = TextLM(vocab_size=data.vocab_size, layers=1, features=8)
    result = api.compress(net, data, [Prune(0.5)], epochs=1, folder=tmp_path / "run")
    assert np.isfinite(result.metrics["val/perplexity"])


def test_what_does_not_fit_is_named(text: Path, run: tuple[Path, Result]) -> None:
    data = TextFile(str(text), tokens="words", length=12)
    with pytest.raises(ConfigError, match=r"Embedding must give logits of shape \(2, 8, 12\) .*got \(2, 12, 8\)"):
        build.check_fit(torch.nn.Embedding(8, 8), data)
    with pytest.raises(ConfigError, match="SmallConv cannot take inputs of shape"):
        build.check_fit(SmallConv(), data)
    with pytest.raises(ConfigError, match="points of accuracy, and this run is judged by perplexity"):
        sensitivity.scan(run[1].config, api.load(run[0] / "model.lcz"), ["unstructured"], 1, print)
