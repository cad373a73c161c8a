"""How well a study could see ahead: rungs against the end of training, predicted bytes against those packed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from lightning_compress.run import traffic
from lightning_compress.sweep import ledger
from lightning_compress.sweep.rungs import Prediction, predicts
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.study import Trial

_FAR_OFF = 0.05


@final
@dataclass(frozen=True)
class Foresight:
    """Rank correlations by rung, and by how much predicted bytes missed: the median and the largest share.

    `names` are the objectives that trials are compared by at a rung.
    """

    names: tuple[str, ...]
    rungs: tuple[Prediction, ...]
    bytes_missed: tuple[float, float] | None

    @property
    def warnings(self) -> list[str]:
        """What the study's early decisions should not be trusted in."""
        said = [text for rung in self.rungs if (text := rung.warning(self.names))]
        if self.bytes_missed is not None and self.bytes_missed[1] > _FAR_OFF:
            said.append(f"predicted bytes were up to {self.bytes_missed[1]:.0%} off those that were packed")
        return said


def foresight(spec: StudySpec, folder: Path, trials: Sequence[Trial]) -> Foresight:
    """What the finished trials of the study in `folder` say about its rungs and predictions."""
    names = ranked(spec)
    columns = [list(spec.objectives).index(name) for name in names]
    full = [trial for trial in trials if trial.state == "done" and trial.values is not None]
    at_end = {trial.number: [(trial.values or ())[column] for column in columns] for trial in full}
    there: dict[int, dict[int, list[float]]] = {}
    for event in ledger.read(folder):
        if event["event"] == "rung":
            there.setdefault(event["epoch"], {})[event["trial"]] = event["values"]
    directions = [spec.objectives[name] for name in names]
    found = tuple(predicts(level, there[level], at_end, directions) for level in sorted(there))
    return Foresight(names, found, _bytes_missed(folder, full))


def ranked(spec: StudySpec) -> tuple[str, ...]:
    """Objectives that are known at a rung, or that a proxy stands for there."""
    proxies = spec.stopping.proxies if spec.stopping is not None else {}
    return tuple(name for name in spec.objectives if name in proxies or "latency" not in name)


def _bytes_missed(folder: Path, trials: Sequence[Trial]) -> tuple[float, float] | None:
    shares = []
    for trial in trials:
        place = folder / "runs" / f"trial-{trial.number}"
        if (place / traffic.PREDICTED).exists():
            predicted = json.loads((place / traffic.PREDICTED).read_text()).get("packed_bytes")
            packed = json.loads((place / "result.json").read_text())["cost"]["packed_bytes"]
            shares += [] if predicted is None else [abs(predicted / packed - 1)]
    return (float(np.median(shares)), max(shares)) if shares else None
