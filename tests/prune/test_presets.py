"""Each `prune=...` of the command line trains, and leaves the zeros or channels that it asks for."""

import json
from pathlib import Path

import pytest

from lightning_compress.cli import main
from lightning_compress.run.config import CONF

PRESETS = sorted(path.stem for path in (CONF / "prune").glob("*.yaml") if path.stem != "none")
DENSE = 6274
#: Share of the dense network's parameters that are left, not counting zeros; biases and norms are left whole in place.
LEFT = {
    **{"gradual": 0.2, "lamp": 0.1, "snip": 0.1, "movement": 0.2, "two_four": 0.5, "channel": 0.27},
    **{"lottery": 0.8**5, "rigl": 0.2},
}
REMOVED = ("channel", "channel_macs", "channel_taylor", "slimming", "soft")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "channel_taylor" else [pytest.mark.slow]) for name in PRESETS]
)
def test_every_preset_trains(name: str, tmp_path: Path) -> None:
    settings = ["model.width=0.5", "epochs=1", "measure.latency=false", "wandb.mode=disabled"]
    argv = ["train", *settings, "+trainer.limit_train_batches=12", f"prune={name}", "--out", str(tmp_path / "run")]
    assert main([*argv, *(["scheduler=rounds"] if name == "lottery" else [])]) == 0
    found = json.loads((tmp_path / "run/result.json").read_text())
    assert 0.0 < found["metrics"]["val/accuracy"] <= 1.0
    cost = found["cost"]
    assert (cost["params"] < DENSE) == (name in REMOVED)
    if name in LEFT:
        assert cost["nonzeros"] / DENSE == pytest.approx(LEFT[name], abs=0.03)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_where_it_comes_from(name: str) -> None:
    first, second, *_ = (CONF / "prune" / f"{name}.yaml").read_text().splitlines()
    assert first == "# @package methods.prune"
    assert name == "gradual" or (second.startswith("# ") and "arXiv" in second)
