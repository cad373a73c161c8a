import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_compress.core import shrunk
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run.api import load

LOAD = """
import sys, torch
from lightning_compress import load
from lightning_compress.models.small_conv import SmallConv
model = load(sys.argv[1] + "/weights.pt", SmallConv(width=0.25))
torch.save(model(torch.load(sys.argv[1] + "/inputs.pt")), sys.argv[1] + "/outputs.pt")
"""


def saved(folder: Path) -> Compact:
    torch.manual_seed(0)
    compressor = Compressor([Prune(0.5, pattern="channel", every=1)])
    model = compressor.attach(SmallConv(width=0.25), torch.randn(2, 1, 8, 8))
    compressor.update(model)
    compact = compressor.finalize(model, None)
    shrunk.save(compact, folder)
    return compact


@pytest.mark.slow
def test_another_process_loads_a_smaller_model_from_plain_files(tmp_path: Path) -> None:
    compact = saved(tmp_path)
    inputs = torch.randn(4, 1, 8, 8)
    torch.save(inputs, tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True)
    assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True), compact.model(inputs))
    assert all(edit["kind"] == "keep" for edit in json.loads((tmp_path / "edits.json").read_text()))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit the base network after edits\.json: expected the network that"):
        shrunk.load(tmp_path, SmallConv(width=0.25, num_classes=3))
    with pytest.raises(ValueError, match=r"holds tensors only: call load\(file, model=the base network\)"):
        load(tmp_path / "weights.pt")
    (tmp_path / "edits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"edits\.json"):
        load(tmp_path / "weights.pt", SmallConv(width=0.25))


def test_quantized_activations_are_in_the_packed_file_only(tmp_path: Path) -> None:
    example = torch.randn(2, 1, 8, 8)
    compressor = Compressor([Quantize(8, 8)])
    model = compressor.attach(SmallConv(width=0.25), example)
    model(example)
    shrunk.save(compressor.finalize(model, example), tmp_path)
    with pytest.raises(ValueError, match=r"no quantized activations \(those are in model\.lcz\)"):
        shrunk.load(tmp_path, SmallConv(width=0.25))
