"""A scan of the digits' network: each number against a model changed by hand, and what is made of it."""

import copy
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.arguments import SCANS
from lightning_compress.core import edits
from lightning_compress.core.compressor import Compressor
from lightning_compress.lowrank.method import LowRank
from lightning_compress.prune.groups import cuts, groups
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run import build, measure, sensitivity
from lightning_compress.run.config import compose
from lightning_compress.sweep import curves

Configure = Callable[..., dict[str, Any]]
BATCHES = 2
pytestmark = pytest.mark.xdist_group("scanned")  # the scan is made once


class Scanned:
    """A network with random weights, its scan, and how to judge another."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        data = build.data(config)
        self.example, task = data.example, build.task(config, data)
        self.model = build.builder(build.architecture(config["model"], data), config)()
        self.before = copy.deepcopy(self.model.state_dict())
        self.found = sensitivity.scan(config, self.model, list(sensitivity.AXES), BATCHES, lambda _: None)
        self._loader, self._task = data.val_dataloader, task

    def judged(self, model: nn.Module) -> dict[str, float]:
        return measure.evaluate(model, islice(self._loader(), BATCHES), self._task, "val")

    def row(self, axis: str, layer: str, amount: Any) -> dict[str, Any]:
        return next(row for row in self.found["scans"][axis][layer] if row["amount"] == amount)

    def same(self, row: dict[str, Any], model: nn.Module) -> bool:
        return math.isclose(row["loss"], self.judged(model)["val/loss"], rel_tol=1e-5)


@pytest.fixture(scope="module")
def scanned(configure: Configure) -> Scanned:
    return Scanned(configure())


def test_each_point_is_one_layer_changed(scanned: Scanned) -> None:
    model = copy.deepcopy(scanned.model)
    weight: Any = model.get_parameter("fc.weight")
    weight.data[weight.abs() <= weight.abs().flatten().kthvalue(round(0.7 * weight.numel())).values] = 0.0
    assert scanned.same(scanned.row("unstructured", "fc", 0.7), model)

    model = copy.deepcopy(scanned.model)
    found = groups(model, scanned.example, ["conv1"])
    norms = model.get_parameter("conv1.weight").abs().flatten(1).sum(1)
    keep = {"conv1": norms > norms.sort().values[len(norms) // 2 - 1]}
    small = edits.replay(model, cuts(model, found, keep))
    assert scanned.same(scanned.row("channel", "conv1", 0.5), small)

    weight = scanned.model.get_parameter("fc.weight").detach()
    step = weight.abs().amax(1, keepdim=True) / 3
    model = copy.deepcopy(scanned.model)
    model.get_parameter("fc.weight").data = (weight / step).round() * step
    assert scanned.row("bits", "fc", 3)["accuracy"] == pytest.approx(scanned.judged(model)["val/accuracy"], abs=0.02)

    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    row = scanned.found["scans"]["rank"]["fc"][0]
    model.get_parameter("fc.weight").data = u[:, : row["amount"]] * s[: row["amount"]] @ v[: row["amount"]]
    assert row["amount"] == round(0.6 * len(s))
    assert scanned.same(row, model)


def test_the_model_stays_and_the_scan_is_the_same_again(scanned: Scanned) -> None:
    assert all(torch.equal(value, scanned.before[name]) for name, value in scanned.model.state_dict().items())
    again = sensitivity.scan(scanned.config, scanned.model, ["unstructured", "rank"], BATCHES, lambda _: None)
    assert again["scans"] == {axis: scanned.found["scans"][axis] for axis in ("unstructured", "rank")}
    assert scanned.same(scanned.found["base"], scanned.model)


def test_what_may_go_can_be_pasted_and_trained(scanned: Scanned, tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    kinds: dict[str, type] = {"unstructured": Prune, "channel": Prune, "bits": Quantize, "rank": LowRank}
    for axis, text in zip(kinds, sensitivity.lines(scanned.found, 3.0), strict=True):
        (tmp_path / f"experiments/{axis}.yaml").write_text(f"# @package _global_\n{text}")
        config = compose([f"experiment={axis}", "model.width=0.25", "wandb.mode=disabled"], folders=[tmp_path])
        (method,) = build.methods(config, None, nn.Identity)
        assert isinstance(method, kinds[axis])
        Compressor([method]).attach(copy.deepcopy(scanned.model), scanned.example)
        if isinstance(method, Prune):
            most = sensitivity.allowed(scanned.found, 3.0)[axis]
            assert [amount(1.0) for amount in method.amounts.values()] == [share or 0.0 for share in most.values()]


def test_the_command_names_every_scan() -> None:
    assert SCANS == (*sensitivity.AXES,) == (*curves.TITLES,)


def test_the_page_has_every_line_and_escapes_names(scanned: Scanned, tmp_path: Path) -> None:
    page = curves.write({**scanned.found, "name": "<b>name", "left_out": {"rank": "x < y"}}, tmp_path / "page")
    text = page.read_text()
    assert "&lt;b&gt;name" in text
    assert "x &lt; y" in text
    assert "<b>name" not in text
    assert [len(curves.figure(scanned.found, axis).data) for axis in scanned.found["scans"]] == [
        len(layers) for layers in scanned.found["scans"].values()
    ]
    assert sensitivity.read(page.with_name("sensitivity.json"))["scans"] == scanned.found["scans"]
