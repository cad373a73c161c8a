"""Reading the test split of a finished run, from the packed file alone."""

from pathlib import Path

import pytorch_lightning as pl

from lightning_compress.run import build, measure
from lightning_compress.run.api import load
from lightning_compress.run.result import Result
from lightning_compress.run.targets import Config


def test_metrics(folder: Path, data_node: Config | None = None) -> dict[str, float]:  # noqa: PT028  # not a test
    """Test loss and metrics of the model packed in a finished run's folder; the packed file is what is judged.

    `data_node` replaces the `data` of the run's configuration where the files lie elsewhere now.

    Raises:
        ValueError: the folder holds no finished run, or its packed file is damaged.
    """
    result = Result.load(folder)
    pl.seed_everything(result.seed, verbose=False)
    data = build.data({**result.config, "data": data_node or result.config["data"]})
    model = load(folder / result.files["packed"], allow=result.config["allow"])
    return measure.evaluate(model, data.test_dataloader(), build.task(result.config, data), "test")
