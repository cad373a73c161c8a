import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from lightning_compress.tracking.wandb import Labels, Run, choose_mode, log_run

Records = dict[str, list[dict[str, Any]]]

LABELS = Labels(
    project="digits", id="study-00007", name="trial 7", group="study", job_type="trial", tags=("prune", "kd")
)
CONFIG = {"prune": {"sparsity": 0.9, "layers": ["conv1", "fc"]}, "seed": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home, so that neither a login nor a setting of this machine's user plays a part."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_", "NETRC"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        yield folder


def inspect(folder: Path, run_id: str) -> Records:
    """Records of the run's log by type, read by W&B's own public tool."""
    (log,) = folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    records: Records = {}
    for record in map(json.loads, lines):
        records.setdefault(record["type"], []).append(record[record["type"]])
    return records


@pytest.fixture(scope="module")
def study(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one complete offline run."""
    folder = tmp_path_factory.mktemp("study") / "not" / "there"
    weights = tmp_path_factory.mktemp("model") / "model.bin"
    weights.write_bytes(b"weights" * 10)
    with log_run(LABELS, config=CONFIG, folder=folder, mode="offline") as run:
        for epoch in range(3):
            run.log({"epoch": epoch, "val/accuracy": epoch / 4})
        run.summary({"obj/size_bytes": 1234})
        run.table("front", ["name", "bytes"], [["dense", 100], ["pruned", 10]])
        run.plotly("plot", go.Figure(go.Scatter(x=[1, 2], y=[3.5, 4.5])))
        run.artifact(weights, "model-7", type="model", metadata={"accuracy": 0.5}, aliases=["pareto"])
        run.artifact(weights.parent, "folder-7", type="folder")
    weights.unlink()
    return folder


@pytest.fixture(scope="module")
def records(study: Path) -> Records:
    return inspect(study, LABELS.id)


def test_labels_config_and_exit_code(records: Records) -> None:
    (run,) = records["run"]
    labels = (run["project"], run["run_id"], run["display_name"], run["run_group"], run["job_type"], tuple(run["tags"]))
    assert labels == ("digits", "study-00007", "trial 7", "study", "trial", ("prune", "kd"))
    assert {key: run["config"]["update"][key] for key in CONFIG} == CONFIG
    assert records["exit"][0].get("exit_code", 0) == 0


def test_history_over_the_x_axis_and_summary(records: Records) -> None:
    rows = [record["item"] for record in records["history"] if "val/accuracy" in record["item"]]
    assert [(row["epoch"], row["val/accuracy"]) for row in rows] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    axes = {metric.get("glob_name", metric.get("name")): metric.get("step_metric") for metric in records["metric"]}
    assert axes == {"epoch": None, "*": "epoch"}
    summary: dict[str, Any] = {}
    for record in records["summary"]:
        summary |= record["update"]
    assert (summary["obj/size_bytes"], summary["val/accuracy"]) == (1234, 0.5)


def logged_file(study: Path, records: Records, name: str) -> dict[str, Any]:
    (path,) = {record["item"][f"{name}.path"] for record in records["history"] if f"{name}.path" in record["item"]}
    (file,) = study.glob(f"wandb/offline-run-*/files/{path}")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_table_and_figure(study: Path, records: Records) -> None:
    table = logged_file(study, records, "front")
    assert table["columns"] == ["name", "bytes"]
    assert table["data"] == [["dense", 100], ["pruned", 10]]
    (trace,) = logged_file(study, records, "plot")["data"]
    assert (trace["type"], trace["x"], trace["y"]) == ("scatter", [1, 2], [3.5, 4.5])


def test_artifacts_are_staged_inside_the_folder(study: Path, records: Records, home: Path) -> None:
    artifacts = {record["name"]: record for record in records["artifact"]}
    model = artifacts["model-7"]
    assert (model["type"], json.loads(model["metadata"])) == ("model", {"accuracy": 0.5})
    assert "pareto" in model["aliases"]
    assert artifacts["folder-7"]["type"] == "folder"
    for name in ("model-7", "folder-7"):
        (content,) = artifacts[name]["manifest"]["contents"]
        assert content["path"] == "model.bin"
        assert Path(content["local_path"]).is_relative_to(study)
        assert Path(content["local_path"]).read_bytes() == b"weights" * 10
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_environment_is_as_before(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "mine")
    before = dict(os.environ)
    with log_run(LABELS, config={}, folder=tmp_path, mode="offline"):
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "wandb" / "data")
    assert dict(os.environ) == before


def test_an_exception_passes_and_marks_the_run_as_failed(home: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="lost"), log_run(LABELS, config={}, folder=tmp_path, mode="offline"):
        raise KeyError("lost")
    assert inspect(tmp_path, LABELS.id)["exit"][0]["exit_code"] == 1


def test_two_open_runs_stay_apart(home: Path, tmp_path: Path) -> None:
    trial = Labels(project="digits", id="study-00008", name="trial 8")
    with log_run(LABELS, config={}, folder=tmp_path, mode="offline") as outer:
        with log_run(trial, config={}, folder=tmp_path, mode="offline", x_axis="step") as inner:
            inner.log({"step": 1, "loss": 0.1})
            outer.log({"epoch": 1, "front": 2})
        outer.log({"epoch": 2, "front": 3})
    rows = [record["item"] for record in inspect(tmp_path, LABELS.id)["history"]]
    assert [(row["epoch"], row["front"]) for row in rows] == [(1, 2), (2, 3)]
    (row,) = [record["item"] for record in inspect(tmp_path, trial.id)["history"]]
    assert (row["step"], row["loss"]) == (1, 0.1)


def test_a_run_that_cannot_start_is_one_warning_and_drops_what_it_is_given(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with log_run(LABELS, config={}, folder=file, mode="offline") as run:
            run.log({"epoch": 1})
            run.table("front", ["a"], [[1]])
            run.artifact(tmp_path / "absent", "a", type="model")
    (warning,) = caught
    assert str(warning.message).startswith("W&B run study-00007: could not start offline (")
    assert str(warning.message).endswith("): the run goes on without W&B")


def test_a_failing_call_is_warned_of_once_and_the_rest_goes_on(home: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with log_run(LABELS, config={}, folder=tmp_path, mode="offline") as run:
            for _ in range(3):
                run.table("front", ["a", "b"], [[1, 2], [1]])
            run.artifact(tmp_path / "absent.bin", "model", type="model")
            run.summary({"obj/accuracy": 0.5})
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2, messages
    assert messages[0].startswith("W&B run study-00007: could not log the table 'front' (")
    assert "absent.bin" in messages[1]
    assert any(record["update"].get("obj/accuracy") == 0.5 for record in inspect(tmp_path, LABELS.id)["summary"])


def test_a_failing_finish_is_a_warning() -> None:
    class Broken:
        id = "r"

        def finish(self, exit_code: int) -> None:
            raise TimeoutError(f"gave up with {exit_code}")

    with pytest.warns(RuntimeWarning, match=r"W&B run r: could not finish \(gave up with 1\)"):
        Run(Broken()).finish(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "environment", "name"),
    [
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("offline", "disabled", "offline"),
        ("disabled", "online", "disabled"),
    ],
)
def test_mode_asked_for(
    wanted: str, environment: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", environment)
    mode = choose_mode(tmp_path, wanted)
    assert mode.name == name
    assert (f"`lightning-compress sync {tmp_path}`" in mode.sentence) == (name == "offline")


def test_unknown_mode_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unknown W&B mode 'ofline': .*did you mean 'offline'"):
        choose_mode(tmp_path, "ofline")
    monkeypatch.setenv("WANDB_MODE", "shared")
    with pytest.raises(ValueError, match="unknown W&B mode 'shared': expected auto, online, offline or disabled"):
        choose_mode(tmp_path)
