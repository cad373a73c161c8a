"""A study of twelve trials on a real Ray, one of whose workers is killed."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from lightning_compress.launch.make import make
from lightning_compress.sweep import engine, ledger
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.spec import StudySpec
from tests.clusters import start
from tests.sweep import toy

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(params=["ray"])
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    starting: dict[str, Callable[[], object]] = {"ray": start.ray}
    with starting[request.param]():  # type: ignore[attr-defined]
        yield request.param


def _kill_one(folder: Path, killed: list[str]) -> None:
    """SIGKILL the first process that is seen training a trial after three of them have begun."""
    while len(list((folder / "runs").glob("trial-*"))) < 3:
        time.sleep(0.05)
    while not killed:
        for place in Path("/proc").glob("[0-9]*"):
            try:
                words = (place / "cmdline").read_bytes().decode().split("\0")
                locks = [path for path in (place / "fd").iterdir() if "trial-" in os.readlink(path)]
            except OSError:
                continue
            is_job = "lightning_compress.launch.call" in words and any("trial-" in word for word in words)
            if int(place.name) != os.getpid() and (locks or is_job):
                os.kill(int(place.name), signal.SIGKILL)
                killed.append(" ".join(words))
                break
        time.sleep(0.02)


def test_a_study_on_a_cluster_survives_the_death_of_a_worker(cluster: str, tmp_path: Path) -> None:
    spec = StudySpec(
        name="cluster",
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min", "cost/latency_ratio": "min"},
        space={"bits": {"low": 2, "high": 8, "int": True}, "sparsity": {"low": 0.1, "high": 0.9}},
        trials=12,
        base=["epochs=9", "seconds=0.3"],
        dense=["bits=32"],
        baselines={"full": ["model.width=1.0"]},
        reference="full",
        fidelity={"grace": 1},
        launch={"launcher": cluster, "workers": 3, "retries": {"crash": 2}},
        report=str(tmp_path / "report"),
    )
    options = {"address": os.environ["RAY_ADDRESS"]} if cluster == "ray" else {}
    launcher = make(cluster, workers=3, folder=tmp_path / "jobs", options=options)
    killed: list[str] = []
    killer = threading.Thread(target=_kill_one, args=(tmp_path / "study", killed), daemon=True)
    killer.start()
    found = engine.sweep(spec, toy.TOOLS, launcher, folder=tmp_path / "study", progress=Progress(Console(quiet=True)))
    assert killed
    ends = Counter(event["trial"] for event in ledger.read(tmp_path / "study") if event["event"] == "end")
    assert ends == dict.fromkeys(range(12), 1)
    crashes = [e for e in ledger.read(tmp_path / "study") if e["event"] == "exit" and e["cause"] == "crash"]
    assert [event["retry"] for event in crashes] == [True]
    assert found.count("failed") == 0
    assert len(found.front) >= 1
