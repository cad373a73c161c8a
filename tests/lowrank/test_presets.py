"""Each `lowrank=...`, `slim=...` and `tie=...` of the command line gives a network that computes or holds less."""

from typing import Any

import pytest

from lightning_compress.run.config import CONF, compose
from lightning_compress.run.predict import predict

PRESETS = sorted(
    f"{group}={path.stem}"
    for group in ("lowrank", "slim", "tie")
    for path in (CONF / group).glob("*.yaml")
    if path.stem != "none"
)
SMALL = ["model=resnet8", "model.width=0.5"]


@pytest.fixture(scope="module")
def dense() -> dict[str, Any]:
    return predict(compose(SMALL))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_saves(preset: str, dense: dict[str, Any]) -> None:
    tied = preset == "tie=layers"
    cost = predict(compose([*SMALL, preset, *(["methods.tie.groups=[layer1]"] if tied else [])]))
    assert cost["params"] < dense["params"]
    assert cost["packed_bytes"] < dense["packed_bytes"]
    assert cost["macs"] == dense["macs"] if tied else cost["macs"] < dense["macs"]
    assert cost["bops"] == 32 * 32 * cost["macs"]
