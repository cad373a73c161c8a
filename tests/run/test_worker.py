import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from lightning_compress.data.digits import Digits
from lightning_compress.run import traffic, worker
from lightning_compress.run.evaluate import test_metrics as metrics_on_test
from lightning_compress.run.result import Result
from lightning_compress.run.train import train

Configured = Callable[..., dict[str, Any]]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _same(one: Path, other: Path) -> bool:
    return (one / "model.lcz").read_bytes() == (other / "model.lcz").read_bytes()


@pytest.fixture(scope="module")
def config(configure: Configured) -> dict[str, Any]:
    return configure("epochs=3", "prune=gradual", "quantize=affine")


@pytest.fixture(scope="module")
def whole(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "whole"
    train(config, folder)
    return folder


def test_a_trial_pauses_and_is_promoted(config: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    plain = json.loads(json.dumps(config))
    assert worker.trial(plain, str(tmp_path), [1, 2], 0.0) == {"status": "paused", "epoch": 1}
    rung = Result.load(tmp_path, "rung-1.json")
    assert rung.status == "paused"
    assert rung.metrics["val/accuracy"] > 0
    assert not (tmp_path / "result.json").exists()
    written = (tmp_path / "rung-1.json").stat().st_mtime_ns
    assert worker.trial(plain, str(tmp_path), [1, 2], 0.0) == {"status": "paused", "epoch": 1}
    assert (tmp_path / "rung-1.json").stat().st_mtime_ns == written
    (tmp_path / "verdict-1.json").write_text('{"go": true}')
    assert worker.trial(plain, str(tmp_path), [1, 2], 0.0) == {"status": "paused", "epoch": 2}
    (tmp_path / "verdict-2.json").write_text('{"go": false}')
    assert worker.trial(plain, str(tmp_path), [1, 2], 30.0) == {"status": "paused", "epoch": 2}
    (tmp_path / "verdict-2.json").write_text('{"go": true}')
    assert worker.trial(plain, str(tmp_path), [1, 2], 0.0) == {"status": "done", "epoch": 3}
    assert worker.trial(plain, str(tmp_path), [1, 2], 0.0) == {"status": "done", "epoch": 3}
    assert _same(tmp_path, whole)


def test_a_trial_waits_for_the_verdict(config: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    def drive() -> None:
        while not (tmp_path / "rung-1.json").exists():
            time.sleep(0.01)
        traffic.decide(tmp_path, 1, True)

    driver = threading.Thread(target=drive)
    driver.start()
    assert worker.trial(config, str(tmp_path), [1], 60.0) == {"status": "done", "epoch": 3}
    driver.join()
    assert _same(tmp_path, whole)


def test_costs_are_written_before_anything_is_trained(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(config: dict[str, Any], folder: Path, rungs: object) -> Result:
        assert _read(folder / "predicted.json")["packed_bytes"] > 0
        return Result(name="stand-in")

    monkeypatch.setattr(worker, "train", seen)
    worker.trial(config, str(tmp_path))

    def cannot(config: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("this method\ncannot")

    monkeypatch.setattr(worker, "predict", cannot)
    monkeypatch.setattr(worker, "train", lambda *_: Result(name="stand-in"))
    worker.trial(config, str(tmp_path / "b"))
    assert _read(tmp_path / "b/predicted.json") == {"error": "ValueError: this method cannot"}


@pytest.mark.parametrize("call", [lambda f: worker.trial({}, f), worker.timing, worker.test])
def test_two_never_work_in_one_folder(
    call: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LOCK_SECONDS", 0.1)
    with filelock.FileLock(tmp_path / worker.LOCK), pytest.raises(TimeoutError, match="another process"):
        call(str(tmp_path))


def test_the_next_one_waits_for_a_process_that_is_about_to_end(tmp_path: Path) -> None:
    lock = filelock.FileLock(tmp_path / worker.LOCK, thread_local=False)
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    with pytest.raises(ValueError, match="holds no finished run"):
        worker.timing(str(tmp_path))


def test_timing_later(configure: Configured, tmp_path: Path) -> None:
    options = ("epochs=1", "measure.onnx=true", "measure.rounds=3", "measure.batch_size=2")
    result = train(configure(*options), tmp_path / "a")
    assert {"model.onnx", "dense.onnx"} <= {path.name for path in (tmp_path / "a").iterdir()}
    assert result.files["onnx"] == "model.onnx"
    assert result.checks
    assert not any("latency" in key for key in result.cost)
    untimed = shutil.copytree(tmp_path / "a", tmp_path / "c")
    told = worker.timing(str(tmp_path / "a"))
    timed = Result.load(tmp_path / "a")
    assert told["latency_ms"] == timed.cost["latency_ms"] > 0
    assert (timed.cost["threads"], timed.cost["batch_size"], timed.cost["latency_rounds"]) == (1, 2, 3)
    assert {**timed.cost, **result.cost} == timed.cost
    assert timed.metrics == result.metrics
    before = (tmp_path / "a/result.json").read_bytes()
    assert worker.timing(str(tmp_path / "a")) == told
    assert (tmp_path / "a/result.json").read_bytes() == before
    reference = str(tmp_path / "a/dense.onnx")
    train(configure(*options, f"measure.reference={reference}"), tmp_path / "b")
    assert not (tmp_path / "b/dense.onnx").exists()
    assert worker.timing(str(tmp_path / "b"))["dense_latency_ms"] > 0
    with pytest.raises(FileNotFoundError, match=r"no ONNX file at .*elsewhere\.onnx"):
        worker.timing(str(untimed), "elsewhere.onnx")


def test_the_test_split_is_read_once(
    whole: Path, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    numbers = worker.test(str(copy), config["data"])
    assert numbers == metrics_on_test(whole) == _read(copy / "test.json")
    monkeypatch.setattr(Digits, "read_test", lambda self: pytest.fail("read again"))
    assert worker.test(str(copy), config["data"]) == numbers


def test_the_data_may_lie_elsewhere_when_the_test_split_is_read(
    whole: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    other = worker.test(str(shutil.copytree(whole, tmp_path / "copy")), {**config["data"], "split_seed": 5})
    assert other != metrics_on_test(whole)


def test_a_run_goes_on_in_another_place(configure: Configured, tmp_path: Path) -> None:
    def moved(study: Path) -> dict[str, Any]:
        paths = (f"teacher.weights={study / 'teacher/weights.pt'}", f"teacher.outputs={study / 'outputs'}")
        more = (f"weights={study / 'start.pt'}", f"wandb.folder={study}", f"measure.reference={study / 'dense.onnx'}")
        return configure("epochs=3", "distill=kl_cached", "model@teacher.model=small_conv", *paths, *more)

    here, there = tmp_path / "here", tmp_path / "deep/er/there"
    train(configure("epochs=1", "model.width=1"), here / "teacher")
    train(configure("epochs=1"), here / "dense")
    shutil.copy(here / "dense/weights.pt", here / "start.pt")
    train(moved(here), here / "runs/whole")
    assert worker.trial(moved(here), str(here / "runs/3"), [1], 0.0)["status"] == "paused"
    whole = shutil.copytree(here / "runs/whole", tmp_path / "whole")
    there.parent.mkdir(parents=True)
    shutil.move(here, there)
    (there / "runs/3/verdict-1.json").write_text('{"go": true}')
    assert worker.trial(moved(there), str(there / "runs/3"), [1], 0.0) == {"status": "done", "epoch": 3}
    assert _same(there / "runs/3", whole)
    again = train(moved(there), there / "runs/whole")
    assert again.history == Result.load(there / "runs/3").history
    other = {**moved(there), "weights": str(there / "dense/weights.pt")}
    with pytest.raises(ValueError, match=r"another configuration \(it differs in weights\)"):
        train(other, there / "runs/3")


def test_dense_weights_are_a_start_for_any_composition(whole: Path, configure: Configured, tmp_path: Path) -> None:
    train(configure("epochs=8", "optimizer.lr=0.02"), tmp_path / "dense")
    start = f"weights={tmp_path / 'dense/weights.pt'}"
    composed = ("prune=gradual", "methods.prune.pattern=channel", "quantize=affine", "epochs=1")
    cold, warm = train(configure(*composed), tmp_path / "cold"), train(configure(*composed, start), tmp_path / "warm")
    assert warm.metrics["train/loss"] < cold.metrics["train/loss"]
    with pytest.raises(ValueError, match=r"weights\.pt does not fit the model: conv1\.weight is .* in the file"):
        train(configure("epochs=1", "model.width=0.5", start), tmp_path / "other")
