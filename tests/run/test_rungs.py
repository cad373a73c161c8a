import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_compress.core.rng import rng_state
from lightning_compress.run import measure
from lightning_compress.run.result import Result
from lightning_compress.run.rungs import Rungs
from lightning_compress.run.targets import ConfigError
from lightning_compress.run.train import train

ROOT = Path(__file__).parents[2]
JOINED = ("epochs=4", "prune=gradual", "methods.prune.every=2", "quantize=affine", "distill=kl")
PHASES = "phases=[{methods:[],epochs:2},{methods:[prune,quantize],epochs:3}]"
PHASED = ("prune=gradual", "methods.prune.pattern=channel", "methods.prune.every=2", "quantize=affine", PHASES)
CASES = {"joined": (JOINED, (1, 3)), "phased": (PHASED, (1, 2, 3))}
Configured = Callable[..., dict[str, Any]]
Whole = tuple[dict[str, Any], Sequence[int], Path, Result]


def tensors(path: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def same_files(one: Path, other: Path) -> bool:
    a, b = (tensors(folder / "weights.pt") for folder in (one, other))
    packed = (one / "model.lcz").read_bytes() == (other / "model.lcz").read_bytes()
    return packed and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module", params=CASES)
def whole(request: Any, configure: Configured, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run that nobody looked at."""
    folder = tmp_path_factory.mktemp("whole")
    overrides, rungs = CASES[request.param]
    teacher = ("model@teacher.model=small_conv", "teacher.epochs=1", f"teacher.folder={folder / 'teachers'}")
    config = configure(*overrides, *teacher)
    return config, rungs, folder / "run", train(config, folder / "run")


def test_a_run_that_is_looked_at_is_the_run_that_is_not(whole: Whole, tmp_path: Path) -> None:
    config, rungs, folder, result = whole
    seen: list[tuple[Result, int]] = []

    def ask(result: Result, epoch: int) -> bool:
        seen.append((result, epoch))
        torch.rand(3)
        return True

    looked_at = train(config, tmp_path, Rungs(rungs, ask))
    assert same_files(folder, tmp_path)
    assert (looked_at.metrics, looked_at.cost, looked_at.history) == (result.metrics, result.cost, result.history)
    assert [epoch for _, epoch in seen] == list(rungs)
    for found, epoch in seen:
        assert found.status == "paused"
        assert found.history == result.history[:epoch]
        assert found.config == config
        assert {"params", "packed_bytes", "relative_bops"} <= set(found.cost)
        assert not any("latency" in key for key in found.cost)
        assert found.metrics["train/loss"] == result.history[epoch - 1]["train/loss"]
        assert 0 < found.metrics["val/accuracy"] <= 1
        assert found.wall_seconds > 0


def test_paused_at_each_rung_and_gone_on_with_in_a_fresh_call(whole: Whole, tmp_path: Path) -> None:
    config, rungs, folder, result = whole
    for epoch in rungs:
        paused = train(config, tmp_path, Rungs([e for e in rungs if e >= epoch], lambda result, epoch: False))
        assert (paused.status, len(paused.history)) == ("paused", epoch)
        assert not (tmp_path / "result.json").exists()
    finished = train(config, tmp_path)
    assert same_files(folder, tmp_path)
    assert (finished.metrics, finished.cost, finished.history) == (result.metrics, result.cost, result.history)


def test_who_stands_on_a_rung_is_asked_again_and_is_what_it_was(whole: Whole, tmp_path: Path) -> None:
    config, rungs, folder, _ = whole
    seen: list[Result] = []

    def refuse(result: Result, epoch: int) -> bool:
        seen.append(result)
        return False

    for epoch in rungs[-2:]:
        seen.clear()
        train(config, tmp_path, Rungs([epoch], refuse))
        saved = {path.name: path.read_bytes() for path in tmp_path.glob("phase*")}
        train(config, tmp_path, Rungs([epoch], refuse))
        assert {path.name: path.read_bytes() for path in tmp_path.glob("phase*")} == saved
        first, second = seen
        assert len(first.history) == epoch
        assert (first.metrics, first.cost, first.history) == (second.metrics, second.cost, second.history)
    train(config, tmp_path)
    assert same_files(folder, tmp_path)


def test_the_numbers_on_a_rung_are_those_of_a_run_that_ends_there(configure: Configured, tmp_path: Path) -> None:
    constant = ("quantize=affine", "scheduler=constant")
    paused = train(configure("epochs=2", *constant), tmp_path / "a", Rungs([1], lambda result, epoch: False))
    ended = train(configure("epochs=1", *constant), tmp_path / "b")
    assert paused.metrics == ended.metrics
    assert paused.cost == ended.cost


def test_checkpoints_at_intervals_and_rungs_between_them(configure: Configured, tmp_path: Path) -> None:
    config = configure("epochs=5", "checkpoint_every=4", "prune=gradual")
    whole = train(config, tmp_path / "a")
    assert train(config, tmp_path / "b", Rungs([3], lambda result, epoch: False)).status == "paused"
    assert torch.load(tmp_path / "b/phase0.ckpt", weights_only=True)["epoch"] == 2
    assert train(config, tmp_path / "b").history == whole.history
    assert same_files(tmp_path / "a", tmp_path / "b")


def test_a_rung_that_is_passed_is_not_measured(
    configure: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "count", lambda *_: pytest.fail("it was measured"))
    rungs = Rungs([1], lambda result, epoch: False, lambda epoch: epoch == 1)
    assert train(configure(), tmp_path, rungs).status == "done"


@pytest.mark.parametrize("epoch", [0, 2, 7])
def test_a_rung_is_before_the_last_epoch(epoch: int, configure: Configured, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"before the last of 2 epochs; got \[{epoch}\]"):
        train(configure(), tmp_path, Rungs([epoch], lambda result, epoch: True))
    assert list(tmp_path.iterdir()) == []


def test_measuring_touches_neither_generators_nor_the_model(
    configure: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure.evaluate

    def wasteful(*arguments: Any) -> dict[str, float]:
        torch.rand(5)
        return real(*arguments)

    states: list[Any] = []

    def ask(result: Result, epoch: int) -> bool:
        states.append(rng_state())
        return True

    train(configure("epochs=2"), tmp_path / "a", Rungs([1], ask))
    monkeypatch.setattr(measure, "evaluate", wasteful)
    train(configure("epochs=2"), tmp_path / "b", Rungs([1], ask))
    assert not torch.equal(states[0]["torch"], states[1]["torch"]), "something did draw"
    assert same_files(tmp_path / "a", tmp_path / "b")


SCRIPT = """
import json, sys, warnings
from pathlib import Path
from lightning_compress.run import ranks
from lightning_compress.run.config import compose
from lightning_compress.run.rungs import Rungs
from lightning_compress.run.train import train
warnings.simplefilter("ignore")
asked = []
def ask(result, epoch):
    asked.append(epoch)
    return epoch < int(sys.argv[3])
found = train(compose(json.loads(sys.argv[2])), Path(sys.argv[1]), Rungs([1, 2], ask))
kept = {"status": found.status, "epochs": len(found.history), "asked": asked, "val": found.metrics["val/accuracy"]}
Path(sys.argv[1], f"rank{int(not ranks.is_first())}-{sys.argv[3]}.json").write_text(json.dumps(kept))
"""


def _two_ranks(folder: Path, last: int) -> list[dict[str, Any]]:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    overrides = [
        "model.width=0.25",
        "epochs=3",
        "data.batch_size=128",
        "data.eval_batch_size=50",
        "wandb.mode=disabled",
    ]
    overrides += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "measure.latency=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(script), str(folder), json.dumps(overrides), str(last)]
    environment |= {"MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}-{last}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_pause_and_go_on_together(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, second = _two_ranks(folder, last=2)
    assert first["asked"] == [1, 2]
    assert second["asked"] == []
    assert (first["status"], first["epochs"], first["val"]) == (second["status"], second["epochs"], second["val"])
    assert (first["status"], first["epochs"]) == ("paused", 2)
    first, second = _two_ranks(folder, last=3)
    assert first["asked"] == [2]
    assert (first["status"], second["status"], first["epochs"]) == ("done", "done", 3)
