"""Loss curves of 20 steps under a fixed seed on the CPU, kept so that a change of behaviour is seen.

To write them anew after an intended change: LIGHTNING_COMPRESS_GOLDEN=1 pytest tests/contract/test_golden.py
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from tests.contract import cases

GOLDEN = Path(__file__).parents[1] / "golden"


class Curve(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(round(float(outputs["loss"]), 7))


@pytest.mark.parametrize("name", ["none", "prune+distill", "channel+quantize", "prune+channel+quantize+distill"])
def test_the_first_twenty_losses_are_the_golden_ones(name: str) -> None:
    curve = Curve()
    cases.fit(cases.module(cases.CASES[name]), cases.trainer(None, curve, max_epochs=2, limit_train_batches=10))
    path = GOLDEN / f"{name.replace('+', '_')}.json"
    if os.environ.get("LIGHTNING_COMPRESS_GOLDEN"):
        path.write_text(json.dumps(curve.losses, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert len(golden) == 20
    assert golden[-1] < golden[0]
    assert curve.losses == pytest.approx(golden, abs=1e-4)
