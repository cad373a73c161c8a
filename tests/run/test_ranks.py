import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lightning_fabric.utilities.rank_zero import rank_zero_only

from lightning_compress.run import ranks


def test_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.is_first()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert not ranks.is_first()


def test_waiting_ends_with_the_file(tmp_path: Path) -> None:
    timer = threading.Timer(0.3, (tmp_path / "result.json").touch)
    timer.start()
    started = time.monotonic()
    ranks.wait_for(tmp_path / "result.json")
    assert time.monotonic() - started >= 0.25


def test_waiting_ends_with_the_first_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    with pytest.raises(SystemExit):
        ranks.wait_for(tmp_path / "never")


@pytest.mark.slow
def test_two_processes_from_the_command_line(tmp_path: Path) -> None:
    """Teacher and student on two ranks: one of them measures, writes and logs, and it sees the whole validation set."""
    overrides = [
        "model.width=0.25",
        "epochs=2",
        "distill=kl",
        "model@teacher.model=small_conv",
        "teacher.epochs=1",
        "prune=gradual",
        "quantize=affine",
        "measure.latency=false",
        "wandb.mode=offline",
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "trainer.accelerator=cpu",
    ]
    command = [sys.executable, "-m", "lightning_compress.cli", "train", *overrides, "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("│ val/accuracy") == 1, "one process speaks"
    assert [done.stdout.count(f"run, epoch {epoch}:") for epoch in (1, 2)] == [1, 1]
    logged = sorted(path.name.split("-")[3] for path in (tmp_path / "run/wandb").glob("offline-run-*"))
    assert logged == ["run", "teacher"], "one W&B run each"
    result = json.loads((tmp_path / "run/result.json").read_text())
    correct = result["metrics"]["val/accuracy"] * 359
    assert correct == pytest.approx(round(correct), abs=1e-3), "the whole validation part was judged"
    assert result["cost"]["sparsity"] > 0.5


@pytest.mark.slow
def test_a_mistake_in_two_processes_ends_both(tmp_path: Path) -> None:
    overrides = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", "optimizer.lr=1e30"]
    command = [sys.executable, "-m", "lightning_compress.cli", "train", *overrides, "wandb.mode=disabled"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode != 0
    assert "error: training loss became NaN" in done.stderr
    assert "Traceback" not in done.stderr
