import json
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.run.identity import claim, is_same
from lightning_compress.run.targets import ConfigError


def _config(**changes: Any) -> dict[str, Any]:
    return {"data": {"source": "mnist", "root": "/a"}, "weights": None, "wandb": {}, "measure": {}, "seed": 0} | changes


def _claimed(config: dict[str, Any], folder: Path) -> Path:
    claim(config, folder)
    (folder / "phase0.ckpt").touch()
    return folder


def test_a_fresh_folder_is_nobodys(tmp_path: Path) -> None:
    assert not is_same(_config(), tmp_path / "run")


def test_where_the_data_lie_does_not_matter(tmp_path: Path) -> None:
    folder = _claimed(_config(teacher={"folder": None, "outputs": None}), tmp_path / "run")
    elsewhere = {"source": "mnist", "root": "/b"}
    assert is_same(_config(data=elsewhere, teacher={"folder": "/t", "outputs": "/o"}), folder)
    with pytest.raises(ConfigError, match="differs in data"):
        is_same(_config(data={"source": "cifar10", "root": "/a"}), folder)


@pytest.mark.parametrize("moved", [False, True])
def test_paths_are_the_same_as_seen_from_the_run(moved: bool, tmp_path: Path) -> None:
    def config(study: Path, name: str = "w.pt") -> dict[str, Any]:
        return _config(phases=[{"from": [str(study / name), 3]}], weights=str(study / "teacher" / name))

    study, outside = tmp_path / "study", str(tmp_path / "outside.pt")
    _claimed(config(study), study / "runs/0")
    _claimed(_config(weights=outside), study / "runs/1")
    if moved:
        study = study.rename(tmp_path / "other")
    assert is_same(config(study), study / "runs/0")
    assert is_same(_config(weights=outside), study / "runs/1"), "what did not move is where it was"
    with pytest.raises(ConfigError, match="differs in weights, phases"):
        is_same(config(study, "x.pt"), study / "runs/0")
    if moved:
        assert not (tmp_path / "study").exists()


def test_a_link_to_the_study_is_the_study(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    _claimed(_config(weights=str(tmp_path / "link/w.pt")), tmp_path / "real/run")
    (tmp_path / "real").rename(tmp_path / "new")
    assert is_same(_config(weights=str(tmp_path / "new/w.pt")), tmp_path / "new/run")


def test_how_it_is_measured_matters_once_it_was(tmp_path: Path) -> None:
    folder = _claimed(_config(), tmp_path / "run")
    assert is_same(_config(measure={"latency": True}, wandb={"mode": "offline"}), folder)
    (folder / "result.json").touch()
    with pytest.raises(ConfigError, match="differs in measure"):
        is_same(_config(measure={"latency": True}), folder)


def test_a_method_that_is_off_is_as_one_that_nobody_knew(tmp_path: Path) -> None:
    folder = _claimed(_config(methods={"prune": {"every": 3}}), tmp_path / "run")
    (folder / "result.json").touch()
    assert is_same(_config(methods={"prune": {"every": 3}, "freeze": None}), folder)
    with pytest.raises(ConfigError, match="differs in methods"):
        is_same(_config(methods={"prune": {"every": 3}, "freeze": {"stages": 3}}), folder)


def test_the_digest_stays_when_the_folder_moves(tmp_path: Path) -> None:
    first = claim(_config(), tmp_path / "run")
    assert first != claim(_config(), tmp_path / "other")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert claim(_config(), tmp_path / "moved") == first
    assert json.loads((tmp_path / "moved/config.json").read_text()) == _config()


@pytest.mark.parametrize("name", ["config.json", "place.json"])
def test_damaged(name: str, tmp_path: Path) -> None:
    claim(_config(), tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        is_same(_config(), tmp_path)


def test_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*; choose another folder"):
        claim(_config(), tmp_path / "file")
