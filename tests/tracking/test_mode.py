import os
import time
from pathlib import Path

import pytest

from lightning_compress.tracking import mode


def test_modes_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert [mode.mode_named(name) for name in ("auto", "online", "offline", "disabled")] == [
        None,
        "online",
        "offline",
        "disabled",
    ]
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert (mode.mode_named("auto"), mode.mode_named("online")) == ("offline", "online")


def test_an_outage_is_forgotten_after_a_while(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    assert not mode.in_outage(tmp_path)
    mode.note_outage(tmp_path)
    assert mode.in_outage(tmp_path)
    past = time.time() - mode.OUTAGE_SECONDS - 1
    os.utime(next((tmp_path / "wandb").iterdir()), (past, past))
    assert not mode.in_outage(tmp_path)


def test_the_environment_inside_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "mine")
    monkeypatch.setenv("WANDB_SERVICE", "a parent's")
    before = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    with mode.inside(tmp_path, WANDB_HTTP_TIMEOUT="3"):
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "wandb" / "data")
        assert (os.environ["WANDB_HTTP_TIMEOUT"], "WANDB_SERVICE" in os.environ) == ("3", False)
        os.environ["WANDB_SERVICE"] = "ours"
    assert dict(os.environ) == before
