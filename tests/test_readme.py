"""The README's Python runs as it stands, and its commands exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress
from lightning_compress.arguments import EXAMPLES
from lightning_compress.data.digits import Digits
from lightning_compress.models.small_conv import SmallConv

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block, _ = BLOCKS
    names: dict[str, object] = {}
    exec(block.replace("epochs=10", "epochs=1"), names)
    assert (tmp_path / "runs/mine/model.lcz").exists()
    assert callable(names["model"])


class _Mine(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = SmallConv(width=0.25)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


@pytest.mark.filterwarnings("ignore:.*many workers", "ignore:.*tensorboardX", "ignore:.*logging interval")
def test_three_lines_compress_a_module_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, block = BLOCKS
    samples = Digits().train_part
    loader = DataLoader(TensorDataset(samples.fetch(torch.arange(128)), samples.labels[:128]), batch_size=32)
    teacher = SmallConv(width=0.25)
    names = {**{name: getattr(lightning_compress, name) for name in lightning_compress.__all__}, "pl": pl}
    exec(block.replace("epochs=10", "epochs=1"), {**names, "module": _Mine(), "loader": loader, "teacher": teacher})
    assert callable(lightning_compress.load("runs/own/model.lcz", SmallConv(width=0.25)))
    assert (tmp_path / "runs/own/model.onnx").exists()


def test_every_command_is_shown_and_exists() -> None:
    assert set(re.findall(r"^lightning-compress ([\w-]+)", README, flags=re.MULTILINE)) == set(EXAMPLES)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 150
