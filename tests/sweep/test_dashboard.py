import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from lightning_compress.sweep import dashboard, space
from lightning_compress.sweep.study import Study


def _get(url: str, process: "subprocess.Popen[bytes]") -> Any:
    end = time.monotonic() + 60
    while True:
        try:
            with urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except (URLError, ConnectionError):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)


def test_the_dashboard_serves_a_study(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    study = Study(tmp_path, name="digits", objectives={"a": "max", "b": "min"}, sampler="random", seed=0)
    for index in range(3):
        study.tell(study.ask(space.parse({"width": [0.5, 1.0], "bits": [2, 4, 8]})).number, (index, 1.0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""
from pathlib import Path
from lightning_compress.sweep.dashboard import serve
serve(Path({str(tmp_path)!r}), port={port})
"""
    environment = os.environ | {"PYTHONPATH": str(Path(dashboard.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    try:
        (found,) = _get(f"http://127.0.0.1:{port}/api/studies", process)["study_summaries"]
        assert found["study_name"] == "digits"
        detail = _get(f"http://127.0.0.1:{port}/api/studies/{found['study_id']}?after=0", process)
        assert [trial["values"] for trial in detail["trials"]] == [[0, 1], [1, 1], [2, 1]]
        assert {param["name"] for param in detail["trials"][0]["params"]} == {"width", "bits"}
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ValueError, match=r"pip install 'lightning-compress\[dashboard\]'"):
        dashboard.serve(tmp_path)
