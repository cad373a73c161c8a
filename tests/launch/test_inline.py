from pathlib import Path

import pytest

from lightning_compress.launch.inline import Inline
from lightning_compress.launch.job import Resources
from tests.launch.cases import job


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 2 processes"):
        Inline().submit(job(tmp_path, "add", wants=Resources(processes=2), first=1, second=2))


def test_a_job_has_ended_when_it_is_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Inline().submit(job(tmp_path, "add", first=1, second=2)).poll()
    assert outcome.value == 3
    assert capsys.readouterr().out == ""
