import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tests.contract import cases, nets

ROOT = Path(__file__).parents[2]


def _script(what: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.contract.fresh", what, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", *nets.IN_EVERY_SUBSET])
def test_a_fresh_process_reloads_and_resumes_each_case_bit_by_bit(kind: str, tmp_path: Path) -> None:
    others = {name: case for name, case in cases.CASES.items() if name.partition(":")[0] not in nets.IN_EVERY_SUBSET}
    expected: dict[str, Any] = {}
    for name, case in (cases.KINDS[kind] if kind else others).items():
        trained = cases.fit(cases.module(case), cases.trainer(tmp_path / name))
        expected[name] = cases.outputs(trained.model)
    done = _script("go_on", tmp_path)
    assert done.returncode == 0, done.stderr
    wrong: dict[str, list[str]] = {}
    for name in expected:
        folder = tmp_path / name
        found = {"outputs": torch.load(folder / "outputs.pt"), **cases.load(cases.checkpoint(folder / "resumed"))}
        want = {"outputs": expected[name], **cases.load(cases.checkpoint(folder))}
        wrong[name] = cases.differences(want, found)
    assert wrong
    assert {name: where for name, where in wrong.items() if where} == {}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each network with all families was trained until its process was killed."""
    folder = tmp_path_factory.mktemp("killed")
    done = _script("be_killed", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("killed")
@pytest.mark.parametrize("name", cases.WHOLE)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name: str, killed: Path, tmp_path: Path) -> None:
    case = cases.CASES[name]
    assert not cases.checkpoint(killed / name, epoch=2).exists()
    last = cases.checkpoint(killed / name, epoch=1)
    cases.fit(cases.module(case, seed=5), cases.trainer(tmp_path / "resumed"), last)
    cases.fit(cases.module(case), cases.trainer(tmp_path / "whole"))
    want, found = (cases.load(cases.checkpoint(tmp_path / name)) for name in ("whole", "resumed"))
    assert cases.differences(want, found) == []


@pytest.mark.parametrize("name", cases.WHOLE)
def test_a_checkpoint_inside_an_epoch_goes_on_inside_it(name: str, tmp_path: Path) -> None:
    class SaveInside(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.global_step == cases.BATCHES + 4:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    case = cases.CASES[name]
    cases.fit(cases.module(case), cases.trainer(tmp_path / "whole", SaveInside()))
    cases.fit(cases.module(case, seed=5), cases.trainer(tmp_path / "resumed"), tmp_path / "inside.ckpt")
    want, found = (cases.load(cases.checkpoint(tmp_path / name)) for name in ("whole", "resumed"))
    assert cases.differences(want, found) == []


def test_the_order_of_samples_differs_between_epochs_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    class Order(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            self.seen.append(batch.index.tolist())

    case = cases.CASES["none"]
    whole, rest = Order(), Order()
    cases.fit(cases.module(case), cases.trainer(tmp_path, whole))
    cases.fit(cases.module(case), cases.trainer(None, rest), cases.checkpoint(tmp_path, epoch=1))
    assert whole.seen[2 * cases.BATCHES :] == rest.seen
    assert len({tuple(indices) for indices in whole.seen}) == len(whole.seen)


@pytest.mark.parametrize("key", ["state_dict", "optimizer_states", "epochs_seen", "rng"])
def test_the_comparison_sees_a_difference(key: str, tmp_path: Path) -> None:
    case = cases.CASES["none"]
    for name, seed in (("a", 0), ("b", 1)):
        cases.fit(cases.module(case, seed=seed), cases.trainer(tmp_path / name, max_epochs=1, limit_train_batches=1))
    left, right = (cases.load(cases.checkpoint(tmp_path / name, epoch=0)) for name in ("a", "b"))
    assert any(where.startswith(f"/{key}") for where in cases.differences(left, right))
