"""A driver to be killed: `python -m tests.sweep.chaos FOLDER LAUNCHER` runs 60 short trials, or goes on with them."""

import sys
from pathlib import Path

from rich.console import Console

from lightning_compress.launch.make import make
from lightning_compress.sweep import engine
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.spec import StudySpec
from tests.sweep import toy

TRIALS = 60


def spec(folder: Path, launcher: str) -> StudySpec:
    return StudySpec(
        name="chaos",
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min", "cost/latency_ratio": "min"},
        space={
            "bits": {"low": 2, "high": 8, "int": True},
            "sparsity": {"low": 0.1, "high": 0.9},
            "model.width": [0.5, 0.75, 1.0],
        },
        trials=TRIALS,
        base=["epochs=9", "seconds=0.3"],
        dense=["bits=32"],
        teacher=["model.width=2"],
        baselines={"full": ["model.width=1.0"]},
        reference="full",
        fidelity={"grace": 1},
        confirm_seeds=[101],
        test=True,
        launch={"launcher": launcher, "workers": 3, "retries": {"crash": 100}},
        report=str(folder.parent / f"{folder.name}-report"),
    )


def main(folder: Path, launcher: str) -> None:
    study = spec(folder, launcher)
    where = make(launcher, workers=3, folder=folder, preload=(toy.HERE,)) if launcher == "local" else None
    where = where or make(launcher, folder=folder)
    engine.sweep(study, toy.TOOLS, where, folder=folder, progress=Progress(Console()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
