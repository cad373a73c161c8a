"""A BERT from texts to the files that are deployed, by the command line: taught, pruned and quantized in one run."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.cli import main
from lightning_compress.data.vocabulary import trained
from lightning_compress.run import api
from tests.models.bert import classifier
from tests.run.test_text import write_films

BERT = "{model_type: bert, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}"
TEACHER = BERT.replace("layers: 2", "layers: 4").replace("_size: 32", "_size: 64")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_films(folder)
    return folder


def settings(films: Path) -> list[str]:
    return [
        *("data=sst2", "data.root=null", f"data.source={films}", "data.max_length=16", "data.limit=100"),
        *("data.batch_size=16", "optimizer.lr=0.005", "wandb.mode=disabled", "speed.precision=32-true"),
        *("model=hf", "measure.latency=false"),
    ]


def teaching(distill: str) -> list[str]:
    own = ["data.vocab_size=290", f"model.name_or_config={BERT}", "model@teacher.model=hf", "teacher.epochs=1"]
    return [*own, f"teacher.model.name_or_config={TEACHER}", f"distill={distill}", "epochs=2"]


@pytest.mark.slow
@pytest.mark.parametrize("distill", ["distilbert", "pkd", "tinybert"])
def test_every_way_of_teaching_texts_trains(distill: str, films: Path, tmp_path: Path) -> None:
    assert main(["train", *settings(films), *teaching(distill), "--out", str(tmp_path / "run")]) == 0
    row = json.loads((tmp_path / "run/result.json").read_text())["history"][-1]
    terms = {key: value for key, value in row.items() if "hint/" in key}
    assert (
        set(terms)
        == {
            "tinybert": {"train/hint/embeddings", "train/hint/hidden", "train/hint/scores"},
            "distilbert": {"train/hint/hidden"},
            "pkd": {"train/hint/patience"},
        }[distill]
    )
    assert min(terms.values()) > 0


@pytest.mark.slow
def test_all_in_one_run_with_both_files(films: Path, tmp_path: Path) -> None:
    joint = ["prune=channel", r"methods.prune.select='\.intermediate\.'", "methods.prune.every=2", "quantize=affine"]
    files = ["measure.latency=true", "measure.rounds=2", "measure.batch_size=3", "evaluate_test=true"]
    argv = ["train", *settings(films), *teaching("tinybert"), *joint, *files, "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["cost"]["latency_ms"] > 0
    assert result["cost"]["packed_bytes"] == (tmp_path / "run/model.lcz").stat().st_size
    model = api.load(tmp_path / "run/model.lcz")
    assert model.get_submodule("net.bert.encoder.layer.1.intermediate.dense").weight.shape == (32, 32)
    assert (tmp_path / "run/model.onnx").exists()


def test_a_pretrained_folder_with_its_tokenizer(films: Path, tmp_path: Path) -> None:
    vocabulary = trained(["the film is a plot fine good great fun bad dull awful flat"], size=290)
    vocabulary.save(tmp_path / "tokenizer.json")
    config = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 20}
    net: Any = classifier("bert", **config).net
    net.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    net.save_pretrained(tmp_path)
    own = [f"data.tokenizer={tmp_path}/tokenizer.json", f"model.name_or_config={tmp_path}", "model.pretrained=true"]
    rounding = ["quantize=affine", "epochs=0"]
    assert main(["train", *settings(films), *own, *rounding, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "config.json").unlink()  # the packed file needs nothing of the folder
    layer = "bert.encoder.layer.0.attention.self.query.weight"
    loaded = api.load(tmp_path / "run/model.lcz").get_parameter(f"net.{layer}")
    original = net.get_parameter(layer)
    assert (loaded - original).abs().max() <= original.abs().max() / 100, "but for rounding the folder's weights"
