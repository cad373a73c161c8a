import shutil
from pathlib import Path

import pytest

from lightning_compress.run.evaluate import test_metrics as read_test_split
from lightning_compress.run.result import Result


def test_the_packed_file_gives_the_runs_own_test_numbers(joint: tuple[Path, Result]) -> None:
    folder, result = joint
    expected = {name: value for name, value in result.metrics.items() if name.startswith("test/")}
    assert read_test_split(folder) == pytest.approx(expected)
    assert "test/accuracy" in expected


def test_the_packed_file_alone_is_judged(joint: tuple[Path, Result], tmp_path: Path) -> None:
    copy = shutil.copytree(joint[0], tmp_path / "copy")
    (copy / "weights.pt").unlink()
    (copy / "phase0.ckpt").unlink()
    assert read_test_split(copy)["test/accuracy"] == joint[1].metrics["test/accuracy"]


def test_damaged(joint: tuple[Path, Result], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        read_test_split(tmp_path)
    copy = shutil.copytree(joint[0], tmp_path / "copy")
    (copy / "model.lcz").write_bytes(b"LCZ")
    with pytest.raises(ValueError, match="is not a sound compressed model"):
        read_test_split(copy)
