from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.cli import main
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.core.task import classification
from lightning_compress.data.digits import Digits
from lightning_compress.distill.method import Distill
from lightning_compress.export import files, packed
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run import measure
from lightning_compress.run.api import compress, export, load
from lightning_compress.run.result import Result
from lightning_compress.run.targets import ConfigError


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )


@pytest.fixture(scope="module")
def methods() -> list[Any]:
    return [Prune(0.5, every=2), Quantize(4, 8)]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory, methods: list[Any]) -> tuple[Path, Result, nn.Module]:
    """A plain network compressed through the Python interface."""
    folder, net = tmp_path_factory.mktemp("api") / "run", _net()
    return folder, compress(net, Digits(batch_size=256), methods, epochs=2, folder=folder, test=True), net


def test_compress(compressed: tuple[Path, Result, nn.Module]) -> None:
    folder, result, _ = compressed
    assert result == Result.load(folder)
    assert {"val/accuracy", "test/accuracy"} <= set(result.metrics)
    assert 0.4 < result.cost["sparsity"] < 0.6
    assert result.cost["packed_bytes"] < result.cost["dense_bytes"] / 4
    assert result.cost["latency_ms"] > 0
    assert {row["weight_bits"] for row in result.layers if row["macs"]} == {4}
    assert all((folder / name).is_file() for name in result.files.values())


def test_model_and_methods_are_left_as_they_are(compressed: tuple[Path, Result, nn.Module], methods: list[Any]) -> None:
    before, after = _net().state_dict(), compressed[2].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert methods[0]._applied == [0.0]


def test_load_gives_what_was_judged(compressed: tuple[Path, Result, nn.Module]) -> None:
    folder, result, net = compressed
    model = load(folder / "model.lcz", net)
    inputs, targets, *_ = next(iter(Digits().val_dataloader()))
    with torch.no_grad():
        outputs = model(inputs)
    assert (outputs.argmax(1) == targets).float().mean().item() == pytest.approx(result.metrics["val/accuracy"])
    got = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"input": inputs.numpy()})[0]
    assert (torch.from_numpy(got).argmax(1) == outputs.argmax(1)).float().mean() > 0.95
    with pytest.raises(ValueError, match=r"does not say which network it is of: call load\(file, model="):
        load(folder / "model.lcz")
    with pytest.raises(ValueError, match=r"names a layer .1. that the model does not have"):
        load(folder / "model.lcz", nn.Linear(1, 1))


def test_an_earlier_run_is_never_taken_for_this_one(compressed: tuple[Path, Result, nn.Module]) -> None:
    folder, result, net = compressed
    with pytest.raises(ValueError, match="holds an earlier run: choose another folder=, or resume=True"):
        compress(net, Digits(), [], folder=folder)
    assert compress(net, Digits(), [], folder=folder, resume=True) == result


def test_a_stopped_run_goes_on(
    tmp_path: Path, compressed: tuple[Path, Result, nn.Module], methods: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure", stop)
        with pytest.raises(OSError, match="No space"):
            compress(_net(), Digits(batch_size=256), methods, epochs=2, folder=tmp_path)
    with pytest.raises(ValueError, match="holds an earlier run"):
        compress(_net(), Digits(batch_size=256), methods, epochs=2, folder=tmp_path)
    again = compress(_net(), Digits(batch_size=256), methods, epochs=2, folder=tmp_path, resume=True)
    assert again.metrics["val/accuracy"] == compressed[1].metrics["val/accuracy"]
    assert again.history == compressed[1].history


class TwoClasses(pl.LightningDataModule):
    """Somebody's own data: pairs, and nothing known about them."""

    def train_dataloader(self) -> DataLoader[Any]:
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=16)

    val_dataloader = train_dataloader


def test_data_of_ones_own(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="the data module has no num_classes; give a task"):
        compress(net, TwoClasses(), [], folder=tmp_path)
    distill = Distill(nn.Linear(4, 2))
    result = compress(net, TwoClasses(), [Quantize(8, 8), distill], epochs=1, folder=tmp_path, task=classification(2))
    assert result.cost["params"] == 58
    assert result.provenance["teacher"] == distill.teacher.hash


def test_export_from_the_packed_file_alone(joint: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = joint
    path = export(folder / "model.lcz", tmp_path / "m.onnx")
    inputs = next(iter(Digits().val_dataloader()))[0]
    got = torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"input": inputs.numpy()})[0])
    with torch.no_grad():
        expected = load(folder / "model.lcz")(inputs)
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.95
    assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_a_packed_file_may_name_networks_only(tmp_path: Path) -> None:
    net = nn.Linear(2, 2).eval()
    compact = Compact(net, {name: Stored(value.detach()) for name, value in net.named_parameters()})
    node: dict[str, Any] = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
    packed.write(compact, tmp_path / "m.lcz", architecture={"model": node, "input_shape": [2]})
    assert torch.equal(load(tmp_path / "m.lcz").state_dict()["weight"], net.weight)
    for target in ("os.system", "lightning_compress.cli.main", "lightning_compress.data.digits.Digits"):
        packed.write(compact, tmp_path / "m.lcz", architecture={"model": {"_target_": target}, "input_shape": [2]})
        with pytest.raises(ConfigError, match="is not allowed"):
            load(tmp_path / "m.lcz")
    mine = {"_target_": "fractions.Fraction"}
    packed.write(compact, tmp_path / "m.lcz", architecture={"model": mine, "input_shape": [2]})
    with pytest.raises(ValueError, match=r"names 'fractions\.Fraction', which is not a network"):
        load(tmp_path / "m.lcz", allow=["fractions"])


def test_export_of_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = nn.Linear(2, 2).eval()
    compact = Compact(net, {name: Stored(value.detach()) for name, value in net.named_parameters()})
    packed.write(compact, tmp_path / "m.lcz", architecture={"model": {"_target_": "my_nets.net"}, "input_shape": [2]})
    assert main(["export", str(tmp_path / "m.lcz"), "--to", str(tmp_path / "m.onnx")]) == 2
    assert main(["export", str(tmp_path / "m.lcz"), "--to", str(tmp_path / "m.onnx"), "--allow", "my_nets"]) == 0
    assert (tmp_path / "m.onnx").exists()


def test_compress_without_an_epoch_quantizes_what_it_is_given(tmp_path: Path) -> None:
    model = SmallConv(width=0.25)
    result = compress(model, Digits(), [Quantize(8, 8, correct_bias=True)], epochs=0, folder=tmp_path / "run")
    assert result.history == []
    deployed, inputs = load(tmp_path / "run" / "model.lcz", model), Digits().example
    with torch.no_grad():
        torch.testing.assert_close(deployed(inputs), model.eval()(inputs), atol=0.1, rtol=0.1)


class _Pairs(pl.LightningDataModule):
    """Two measurements by name, and whether the first is the larger."""

    def train_dataloader(self) -> "DataLoader[Any]":
        left, right = torch.randn(64, 3), torch.randn(64, 3)
        samples = [({"input1": a, "input2": b}, int(a.sum() > b.sum())) for a, b in zip(left, right, strict=True)]
        return DataLoader(samples, batch_size=16)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


class _Compare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.fc2(self.fc1(torch.cat([input1, input2], 1)).relu())
        return outputs


@pytest.mark.filterwarnings("ignore:.*many workers")
def test_a_network_of_two_inputs(tmp_path: Path) -> None:
    task = classification(2)
    result = compress(_Compare(), _Pairs(), [Prune(0.5, every=2)], epochs=1, folder=tmp_path / "run", task=task)
    assert result.cost["latency_ms"] > 0
    assert result.cost["macs"] == 6 * 16 + 16 * 2
    model = load(tmp_path / "run" / "model.lcz", _Compare())
    assert model(torch.ones(1, 3), torch.ones(1, 3)).shape == (1, 2)


def test_export_of_a_network_of_two_inputs_says_where_its_file_is(tmp_path: Path) -> None:
    net, node = nn.Bilinear(2, 3, 4), {"_target_": "torch.nn.Bilinear", "in1_features": 2, "in2_features": 3}
    stored = {name: Stored(value.detach()) for name, value in net.named_parameters()}
    about = files.about({**node, "out_features": 4}, (torch.ones(1, 2), torch.ones(1, 3)))
    packed.write(Compact(net.eval(), stored), tmp_path / "model.lcz", architecture=about)
    with pytest.raises(ValueError, match=r"model\.lcz does not say what its network takes: expected one tensor"):
        export(tmp_path / "model.lcz", tmp_path / "model.onnx", allow=["torch"])
