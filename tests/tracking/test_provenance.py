import json
import platform
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from lightning_compress.tracking import provenance as module
from lightning_compress.tracking.provenance import PACKAGES, cpu_name, provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_commit_and_dirty_follow_the_repository(repository: Path) -> None:
    (repository / "inner").mkdir()
    record = provenance(repository / "inner")
    assert record["commit"] == git(repository, "log", "-1", "--format=%H")
    assert record["dirty"] is False
    (repository / "new_record.json").write_text("{}")
    assert provenance(repository)["dirty"] is False
    (repository / "code.py").write_text("x = 2\n")
    assert provenance(repository)["dirty"] is True


def test_records_and_pages_written_anew_are_no_change_of_the_code(repository: Path) -> None:
    (repository / "reports").mkdir()
    (repository / "reports/seed0.json").write_text("{}")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "second")
    (repository / "reports/seed0.json").write_text("[]")
    assert provenance(repository / "reports")["dirty"] is False


def test_a_repository_without_commit_has_no_provenance(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert (provenance(tmp_path)["commit"], provenance(tmp_path)["dirty"]) == (None, None)


def test_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (provenance(tmp_path)["commit"], provenance(tmp_path)["dirty"]) == (None, None)


def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert (provenance(repository)["commit"], provenance(repository)["dirty"]) == (None, None)


def test_record_is_json_and_says_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", (*PACKAGES, "no-such-package"))
    record = json.loads(json.dumps(provenance()))
    assert abs(datetime.now(UTC) - datetime.fromisoformat(record["time"])) < timedelta(seconds=30)
    assert record["time"].endswith("+00:00")
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["no-such-package"] is None
    assert record["python"] == platform.python_version()
    assert record["threads"] == torch.get_num_threads()
    assert record["device"]
    assert platform.node() not in json.dumps(record).split('"')


def test_cpu_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "_CPU_INFO", info)
    assert cpu_name() == (platform.processor() or platform.machine())
    info.write_text("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2.00GHz\n")
    assert cpu_name() == "Some CPU @ 2.00GHz"
