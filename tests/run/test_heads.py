"""A shared trunk with a head for each question, from the command line to the files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_compress.cli import main
from lightning_compress.data.digits import Digits
from lightning_compress.export import runtime
from lightning_compress.run.api import load
from lightning_compress.run.evaluate import test_metrics as read_test_split
from lightning_compress.run.result import Result


@pytest.mark.slow
def test_the_command_line_trains_and_exports_a_shared_trunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    methods = ["prune=channel", "share=kmeans", "methods.share.start=0.6", "quantize=affine", "distill=kl"]
    teacher = ["model@teacher.model=shared_trunk", "teacher.epochs=15"]
    options = ["epochs=30", "evaluate_test=true", "measure.rounds=3", "wandb.mode=disabled", "name=heads"]
    heads = "data.heads={parity:[0,1,0,1,0,1,0,1,0,1],digit:null}"
    assert main(["train", "model=shared_trunk", heads, *methods, *teacher, *options]) == 0
    assert "val/accuracy/parity" in capsys.readouterr().out
    result = Result.load(Path("runs/heads"))
    digit, parity = (result.metrics[f"val/accuracy/{head}"] for head in ("digit", "parity"))
    assert result.metrics["val/accuracy"] == pytest.approx((digit + parity) / 2)
    assert digit > 0.9
    assert parity > 0.95
    assert result.cost["packed_bytes"] < result.cost["dense_bytes"] / 15
    assert {layer["name"]: layer["shape"][0] for layer in result.layers if layer["macs"]} == {
        **{"trunk.conv1": 8, "trunk.conv2": 16, "trunk.conv3": 32},
        **{"heads.digit": 10, "heads.parity": 2},
    }, "half of the trunk's channels are gone"

    inputs, targets, *_ = next(iter(Digits(heads={"parity": [0, 1] * 5, "digit": None}).val_dataloader()))
    with torch.no_grad():
        outputs = load("runs/heads/model.lcz")(inputs)
    exported = runtime.session("runs/heads/model.onnx")(inputs.numpy())
    for column, head in enumerate(["digit", "parity"]):
        right = (outputs[head].argmax(1) == targets[:, column]).float().mean().item()
        assert right == pytest.approx(result.metrics[f"val/accuracy/{head}"])
        assert (exported[head].argmax(1) == outputs[head].argmax(1).numpy()).mean() > 0.99
        assert result.checks[f"integer/relative_error/{head}"] < 0.01
        assert np.abs(exported[head] - outputs[head].numpy()).max() < 0.2
    again = read_test_split(Path("runs/heads"))
    assert again == pytest.approx({name: result.metrics[name] for name in again})
