"""A real table of a tiny network, measured by the script where nothing of this package can be imported."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lightning_compress.cli import main
from lightning_compress.deploy import table
from lightning_compress.export.latency_table import Table
from lightning_compress.export.layers import Layer

pytestmark = pytest.mark.xdist_group("table")  # the table is measured once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("table") / "pi"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "write_pieces", partial(table.write_pieces, patterns=2))
        assert main(["latency-table", "model.width=0.25", "--export", str(to)]) == 0
    return to


@pytest.mark.slow
def test_the_script_alone_makes_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--rounds", "3", "--batch-size", "2", "--device", "A device!"]
    done = subprocess.run(
        [sys.executable, "-I", "measure_table.py", *words], cwd=folder, capture_output=True, text=True, check=True
    )
    written = folder / "table-a-device.json"
    assert done.stdout.splitlines()[-1] == f"written: {written}"
    found = Table.read(written)
    assert (found.device, found.batch_size, found.threads) == ("A device!", 2, 1)
    kinds = {(grid.layer.kind, grid.layer.before, grid.layer.after) for grid in found.grids.values()}
    sides = (("float", "float"), ("uint8", "uint8"), ("uint8", "float"))
    assert kinds == {(kind, *side) for kind in ("conv", "linear") for side in sides}
    assert len(found.measured) == 5
    assert [fitted for _, _, fitted in found.measured] == [True] * 3 + [False] * 2
    whole, pruned = found.measured[0][0], found.measured[3][0]
    assert sum(layer.outs for layer in pruned.layers) < sum(layer.outs for layer in whole.layers)
    for network, ms, _ in found.measured:
        assert found.predict(network)[0] > 0
        assert min(ms.values()) > 0
    assert found.error is not None
    assert np.isfinite(found.error.worst)
    capsys.readouterr()
    assert main(["latency-table", "--show", str(written)]) == 0
    assert str(found.error) in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_of_this_device(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = (folder / "pieces.zip").read_bytes()
    monkeypatch.setattr(table, "write_pieces", lambda config, file, say: file.write_bytes(archive))
    to = tmp_path / "new" / "cpu.json"
    assert main(["latency-table", "--out", str(to), "--rounds", "1", "--batch-size", "1", "--threads", "2"]) == 0
    assert json.loads(to.read_text())["threads"] == 2


@pytest.mark.slow
def test_the_script_says_what_is_wrong(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "measure_table.py", "--rounds", "0"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "error: expected --batch-size, --threads and --rounds from 1 up\n"


def test_kinds_of_layers() -> None:
    conv = Layer("conv", 8, 16, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    each = Layer("conv", 8, 8, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups=8)
    head = Layer("linear", 16, 10, last=True)
    found = table.families([conv, conv.at(16, 8), each, each.at(32, 1), head])
    assert [(layer.ins, layer.outs, layer.groups, layer.last) for layer in found[::3]] == [
        *((16, 16, 1, False), (32, 32, 32, False), (16, 10, 1, True))
    ]
    assert [(layer.before, layer.after) for layer in found[:3]] == list(table._SIDES)
