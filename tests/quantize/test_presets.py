"""Each `quantize=...` of the command line trains and writes its files; `freeze=profit` with one of them."""

import json
from pathlib import Path

import pytest

from lightning_compress.cli import main
from lightning_compress.run.config import CONF

PRESETS = sorted(path.stem for path in (CONF / "quantize").glob("*.yaml"))
TINY = ["model.width=0.25", "epochs=1", "measure.latency=false", "wandb.mode=disabled"]
#: What an epoch of three steps needs besides.
BESIDES = {
    "ptq": ["methods.quantize.adaround=3", "methods.quantize.calibration_batches=2"],
    "sensitivity": ["methods.quantize.weight_bits.probes=2"],
}
#: Weights whose file is larger than this share of the float network's are not of few bits.
SHARE = {"none": 1.1, "seed_affine": 0.5, "affine": 0.5, "ptq": 0.5, "sensitivity": 0.5, "bayesian_bits": 0.5}


def _trained(folder: Path, *overrides: str, steps: int = 3) -> dict[str, float]:
    argv = ["train", *TINY, f"+trainer.limit_train_batches={steps}", *overrides, "--out", str(folder)]
    assert main(argv) == 0
    found: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return found


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of the network without any method."""
    folder = tmp_path_factory.mktemp("presets") / "dense"
    _trained(folder)
    return (folder / "model.lcz").stat().st_size


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("lsq", "ptq") else [pytest.mark.slow]) for name in PRESETS]
)
def test_every_preset_trains(name: str, dense: int, tmp_path: Path) -> None:
    metrics = _trained(tmp_path / "run", f"quantize={name}", *BESIDES.get(name, []))
    assert 0.0 < metrics["val/accuracy"] <= 1.0
    assert (tmp_path / "run/model.lcz").stat().st_size < SHARE.get(name, 0.45) * dense


@pytest.mark.slow
def test_freezing_with_bits_that_fall(tmp_path: Path) -> None:
    settings = ["quantize=progressive", "freeze=profit", "methods.freeze.every=1"]
    metrics = _trained(tmp_path / "run", *settings, steps=12)
    assert metrics["train/freeze/layers"] == 2.0


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "none"])
def test_a_preset_says_where_it_comes_from(name: str) -> None:
    first, second, *_ = (CONF / "quantize" / f"{name}.yaml").read_text().splitlines()
    assert first == "# @package methods.quantize"
    assert second.startswith("# ")
    own = ("ptq", "seed_affine", "group")  # steps of several papers, a formula, a layout
    assert ("arXiv" in second) == (name not in own)
