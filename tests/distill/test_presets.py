"""Each `distill=...` of the command line trains a student beside a teacher of another depth and width."""

import json
from pathlib import Path

import pytest

from lightning_compress.cli import main
from lightning_compress.run.config import CONF, compose

PRESETS = sorted(path.stem for path in (CONF / "distill").glob("*.yaml") if path.stem != "none")
#: Of texts: tests/run/test_huggingface.py.
TEXTS = {"distilbert", "pkd", "tinybert"}


def _terms(name: str) -> set[str]:
    node = compose([f"distill={name}"])["methods"]["distill"]
    return {f"train/hint/{hint}" for hint in node.get("hints", ())} | (
        {"train/distill"} if node.get("loss", "kl") else set()
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "attention" else [pytest.mark.slow])
        for name in PRESETS
        if name not in TEXTS
    ],
)
def test_every_preset_trains(name: str, tmp_path: Path) -> None:
    networks = ["model=resnet8", "model.width=0.25", "model@teacher.model=resnet20", "teacher.model.width=0.5"]
    settings = ["epochs=2", "teacher.epochs=1", "measure.latency=false", "wandb.mode=disabled"]
    argv = ["train", *networks, *settings, "+trainer.limit_train_batches=6", f"distill={name}"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run/result.json").read_text())
    row = found["history"][-1]
    terms = _terms(name)
    assert terms
    assert {key for key in row if key == "train/distill" or "/hint/" in key} == terms
    assert all(row[key] > 0 for key in terms - {"train/hint/boundary"})  # that one has ended


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_where_it_comes_from(name: str) -> None:
    first, second, *_ = (CONF / "distill" / f"{name}.yaml").read_text().splitlines()
    assert first == ("# @package _global_" if name == "kl_cached" else "# @package methods.distill")
    assert name in ("kl", "kl_cached") or (second.startswith("# ") and "arXiv" in second)


def test_layers_that_are_not_there_are_known_before_the_teacher_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "model=small_conv", "model@teacher.model=resnet20", "distill=attention", "wandb.mode=disabled"]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 2
    assert "no module 'layer1' to tap; did you mean" in capsys.readouterr().err
