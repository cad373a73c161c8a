"""A study of twelve trials on a real Slurm and a real Ray, one of whose workers is killed."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lightning_compress.launch.make import make
from lightning_compress.sweep import engine, ledger
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.spec import StudySpec
from tests.clusters import start
from tests.sweep import toy

# Some forty jobs, each a Python of its own; Slurm begins jobs once a second, and timings run with nothing beside them.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CLUSTERS: dict[str, Callable[[], AbstractContextManager[object]]] = {"slurm": start.slurm, "ray": start.ray}
TOOLS = replace(toy.TOOLS, trial="tests.clusters.tasks:mortal")


@pytest.fixture(params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    with CLUSTERS[request.param]():
        yield request.param


def test_a_study_on_a_cluster_survives_the_death_of_a_worker(cluster: str, tmp_path: Path) -> None:
    spec = StudySpec(
        name="cluster",
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min", "cost/latency_ratio": "min"},
        space={"bits": {"low": 2, "high": 8, "int": True}, "sparsity": {"low": 0.1, "high": 0.9}},
        trials=12,
        base=["epochs=3", "seconds=0.1"],
        dense=["bits=32"],
        baselines={"full": ["model.width=1.0"]},
        reference="full",
        fidelity={"grace": 1},
        launch={"launcher": cluster, "workers": 3, "retries": {"crash": 1}},
        report=str(tmp_path / "report"),
    )
    options = {"address": os.environ["RAY_ADDRESS"]} if cluster == "ray" else {}
    launcher = make(cluster, workers=3, folder=tmp_path / "jobs", options=options)
    study = tmp_path / "study"
    found = engine.sweep(spec, TOOLS, launcher, folder=study, progress=Progress(Console(quiet=True)))
    killed = (study / "runs" / "killed.txt").read_text()
    events = list(ledger.read(study))
    assert Counter(event["trial"] for event in events if event["event"] == "end") == dict.fromkeys(range(12), 1)
    bad = [event for event in events if event["event"] == "exit" and event["cause"] != "done"]
    assert [(event["run"], event["cause"], event["retry"]) for event in bad] == [(killed, "crash", True)]
    assert "SIGKILL" in bad[0]["detail"]
    for place in (study / "runs").glob("trial-*"):
        epochs = Counter((place / "epochs.txt").read_text().split())
        # A process goes on where the one before it stopped: only the epoch of the death is trained again.
        assert epochs == Counter("1223") if place.name == killed else epochs <= Counter("123")
    assert found.count("failed") == 0
    assert len(found.front) >= 1
