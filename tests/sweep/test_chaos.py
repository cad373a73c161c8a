"""Drivers and workers killed at random moments: every trial is told once, nothing is lost, nobody is left."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from lightning_compress.sweep import ledger, record
from tests.sweep.chaos import TRIALS

ROOT = Path(__file__).parents[2]
KILLS = 50
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class Driver:
    """The study's driver, started again after each death; its processes are known by a mark in their environment."""

    def __init__(self, folder: Path, launcher: str) -> None:
        self._command = [sys.executable, "-m", "tests.sweep.chaos", str(folder), launcher]
        self._mark = uuid.uuid4().hex
        self._log = folder.parent / f"{folder.name}.txt"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "CHAOS": self._mark, "PYTHONPATH": str(ROOT)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        return self.process

    def others(self) -> list[int]:
        """Processes of this study but the driver itself."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                known = f"CHAOS={self._mark}".encode() in (place / "environ").read_bytes()
                dead = (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if known and not dead and int(place.name) != self.process.pid:
                found.append(int(place.name))
        return found

    def kill_driver(self) -> None:
        self.process.kill()
        self.process.wait()
        until = time.monotonic() + 5
        while self.others() and time.monotonic() < until:
            time.sleep(0.05)
        assert self.others() == [], "no process outlives its driver"

    def finish(self) -> None:
        assert self.process.wait(timeout=600) == 0, self._log.read_text()[-3000:]
        assert self.others() == []


def _check(folder: Path) -> None:
    told = Counter()  # type: ignore[var-annotated]
    for line in (folder / "journal.log").read_text().splitlines():
        entry = json.loads(line)
        if "trial_id" in entry and entry.get("state") in (1, 2, 3):
            told[entry["trial_id"]] += 1
    trials = record.trials(folder)
    repeats = sum(1 for event in ledger.read(folder) if event["event"] == "end" and event["repeats"] is not None)
    assert len(told) == TRIALS - repeats
    assert set(told.values()) == {1}, "each trial is told exactly once"
    assert [trial.number for trial in trials if trial.state == "running"] == []
    assert len(trials) == TRIALS - repeats
    ends = Counter(event["trial"] for event in ledger.read(folder) if event["event"] == "end")
    assert set(ends.values()) == {1}
    assert len(ends) == TRIALS
    completed = Counter((folder / "runs/completed.txt").read_text().split())
    assert set(completed.values()) == {1}, "no run is trained to its end twice"
    full = {f"trial-{trial.number}" for trial in trials if trial.state == "done"}
    assert full == {name for name in completed if name.startswith("trial-")}


@pytest.mark.parametrize("launcher", ["inline", "local"])
def test_a_study_outlives_its_processes(tmp_path: Path, launcher: str) -> None:
    straight = Driver(tmp_path / "straight", launcher)
    straight.finish()
    dice = random.Random(7)
    driver = Driver(tmp_path / "study", launcher)
    kills = 0
    while kills < KILLS and driver.process.poll() is None:
        time.sleep(dice.uniform(0.0, 1.0) if launcher == "local" else dice.uniform(1.5, 4.0))
        workers = driver.others()
        if launcher == "local" and workers and dice.random() < 0.7:
            try:
                os.kill(dice.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                continue
        elif driver.process.poll() is None:
            driver.kill_driver()
            driver.start()
        kills += 1
    driver.finish()
    assert kills == KILLS, "the study must be long enough to be disturbed"
    _check(tmp_path / "straight")
    _check(tmp_path / "study")
    found, undisturbed = record.collect(tmp_path / "study"), record.collect(tmp_path / "straight")
    if launcher == "inline":
        assert [(p.params, p.values) for p in found.front] == [(p.params, p.values) for p in undisturbed.front]
        assert [trial.params for trial in found.trials] == [trial.params for trial in undisturbed.trials]
