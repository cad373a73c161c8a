"""A study in which things go wrong, run on real workers, and what its folder must say afterwards."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_compress.launch.inline import Inline
from lightning_compress.launch.local import Local
from lightning_compress.run.result import Result
from lightning_compress.sweep import engine, ledger
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.spec import StudySpec
from tests.sweep import toy

TRIALS = 6


def spec_of(folder: Path, broken: Mapping[str, str], **launch: Any) -> StudySpec:
    written = ", ".join(f"{run}: {how}" for run, how in broken.items())
    return StudySpec(
        name="failing",
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min"},
        space={"bits": {"low": 2, "high": 8, "int": True}, "sparsity": {"low": 0.1, "high": 0.9}},
        trials=TRIALS,
        base=["epochs=2", f"broken={{{written}}}"],
        baselines={"full": []},
        reference="full",
        launch={"workers": 2, **launch},
        report=str(folder.parent / "report"),
    )


def sweep(spec: StudySpec, folder: Path) -> list[str]:
    """Run the command, or write it again; the lines that it shows."""
    out = io.StringIO()
    chosen = spec.launching
    launcher = Inline() if chosen.launcher == "inline" else Local(chosen.workers, devices=[], preload=(toy.HERE,))
    engine.sweep(spec, toy.TOOLS, launcher, folder=folder, progress=Progress(Console(file=out, width=200)))
    return out.getvalue().splitlines()


def line_with(lines: list[str], *words: str) -> str:
    (line,) = [line for line in lines if all(word in line for word in words)]
    return line


def ends(folder: Path, run: str) -> list[dict[str, Any]]:
    """What the ledger says of how each attempt at a run ended, times left out."""
    events = [event for event in ledger.read(folder) if event["event"] == "exit" and event["run"] == run]
    return [{key: event.get(key) for key in ("cause", "detail", "retry")} for event in events]


def failed(folder: Path) -> dict[int, str]:
    """What the ledger says of the trials that failed; all others must be done."""
    ended = {event["trial"]: event for event in ledger.read(folder) if event["event"] == "end"}
    assert {event["state"] for event in ended.values()} <= {"done", "failed"}
    return {number: event["reason"] for number, event in ended.items() if event["state"] == "failed"}


def complete(folder: Path) -> dict[Path, str]:
    """Digests of the results that are complete: trained in full, and timed."""
    results = [path for path in folder.glob("runs/*/result.json") if "latency_ms" in Result.load(path.parent).cost]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in results}


def check_told_once(folder: Path) -> None:
    entries = [json.loads(line) for line in (folder / "journal.log").read_text().splitlines()]
    told = Counter(entry["trial_id"] for entry in entries if "trial_id" in entry and entry.get("state") in (1, 2, 3))
    ended = Counter(event["trial"] for event in ledger.read(folder) if event["event"] == "end")
    assert told == ended == Counter(range(TRIALS))
    completed = Counter((folder / "runs/completed.txt").read_text().split())
    assert set(completed.values()) == {1}, "no run is trained to its end twice"


def check_resumed(spec: StudySpec, folder: Path) -> None:
    """The same command has nothing left to do."""
    before = complete(folder)
    lines = sweep(spec, folder)
    assert not [line for line in lines if line.startswith("[")], "nothing is run"
    assert complete(folder) == before
    check_told_once(folder)
