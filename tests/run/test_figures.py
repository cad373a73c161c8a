from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.run.targets import ConfigError
from lightning_compress.run.train import train

Configure = Callable[..., dict[str, Any]]
ERRORS = "+figures.errors={_target_: lightning_compress.core.errors.Errors, apart: 3, raised: [3]}"


def test_an_experiment_asks_for_more_numbers(configure: Configure, tmp_path: Path) -> None:
    metrics = train(configure("epochs=2", "evaluate_test=true", ERRORS), tmp_path / "run").metrics
    for split in ("val", "test"):
        share = 1 - metrics[f"{split}/accuracy"]
        assert metrics[f"{split}/errors"] / share == pytest.approx(1797 / 5, abs=1)
    assert metrics["val/errors_shifted"] <= metrics["val/errors"]


def test_the_test_part_is_not_read_for_them_unasked(configure: Configure, tmp_path: Path) -> None:
    metrics = train(configure("epochs=1", "evaluate_test=false", ERRORS), tmp_path / "run").metrics
    assert "val/errors_of_3_shifted" in metrics
    assert not [name for name in metrics if name.startswith("test/")]


def test_arguments_are_checked_before_anything_is_trained(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="aparte"):
        configure(ERRORS.replace("apart:", "aparte:"))
