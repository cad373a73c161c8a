"""What a run tells W&B and the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_compress.run.result import Result
from lightning_compress.run.targets import Config
from lightning_compress.tracking import wandb

_LOG = logging.getLogger("lightning_compress.run.train")


@contextmanager
def tracked(config: Config, folder: Path, digest: str) -> Iterator[wandb.Run]:
    """The run's W&B run, open; its id is the configuration's, or made of name and `digest`."""
    options = config["wandb"]
    home = Path(options["folder"] or folder)
    # Who says online has seen that there is a login, and asking again takes seconds; a run that fails stays on disk.
    mode = "online" if options["mode"] == "online" else wandb.choose_mode(home, options["mode"]).name
    labels = wandb.Labels(
        project=options["project"],
        id=options["id"] or f"{config['name']}-{digest}".replace("/", "-"),
        name=options["name"],
        group=options["group"],
        job_type=options["job_type"],
        tags=tuple(options["tags"]),
    )
    with wandb.log_run(labels, config=config, folder=home, mode=mode) as run:
        yield run


def epoch(name: str, log: wandb.Run, row: dict[str, float]) -> None:
    """One row of the curve."""
    log.log(row)
    figures = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
    _LOG.info("%s, epoch %d: %s", name, row["epoch"] + 1, figures)


def summary(log: wandb.Run, result: Result) -> None:
    """How the run ended, or that it is paused, its numbers, and the teacher's hash if it had one."""
    costs = {f"cost/{key}": value for key, value in result.cost.items()}
    known = {key: result.provenance[key] for key in ("teacher",) if key in result.provenance}
    log.summary({"status": result.status, **known, **result.metrics, **costs})


def layers(log: wandb.Run, result: Result) -> None:
    """The per-layer table."""
    if result.layers:
        columns = list(result.layers[0])
        log.table(
            "layers", columns, [[str(row[c]) if c == "shape" else row[c] for c in columns] for row in result.layers]
        )
