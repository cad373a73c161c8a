"""Runs on the digits, small enough to train in a test; the slow ones are shared by the session."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.run.config import compose
from lightning_compress.run.result import Result
from lightning_compress.run.train import train

TINY = ("model.width=0.25", "epochs=2", "data.batch_size=256", "measure.latency=false", "wandb.mode=disabled")
JOINT = (
    "prune=gradual",
    "methods.prune.every=2",
    "quantize=affine",
    "distill=kl",
    "model@teacher.model=small_conv",
    "teacher.epochs=1",
    "evaluate_test=true",
)

Configure = Callable[..., dict[str, Any]]


def _configure(*overrides: str) -> dict[str, Any]:
    return compose([*TINY, *overrides])


@pytest.fixture(scope="session")
def configure() -> Configure:
    """The configuration of a tiny run."""
    return _configure


@pytest.fixture(scope="session")
def joint_overrides() -> Sequence[str]:
    """Pruning, quantization and distillation in one run, test split read."""
    return JOINT


@pytest.fixture(scope="session")
def joint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run with all methods on; leave its folder as it is."""
    folder = tmp_path_factory.mktemp("joint") / "run"
    return folder, train(_configure(*JOINT), folder)
