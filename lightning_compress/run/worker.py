"""What the jobs of a study call: plain data in, files in the run's folder, plain data out.

A trial and its driver talk through the files of `traffic.py`.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import filelock

from lightning_compress.core.files import write_json
from lightning_compress.launch.call import one_line
from lightning_compress.run import ranks, traffic
from lightning_compress.run.evaluate import test_metrics
from lightning_compress.run.predict import predict
from lightning_compress.run.result import FILE, Result
from lightning_compress.run.rungs import Rungs
from lightning_compress.run.targets import Config
from lightning_compress.run.timing import time_priced, time_run
from lightning_compress.run.train import train

LOCK = ".lock"
_LOCK_SECONDS = 30.0
_PAUSE = 0.05


def trial(config: Config, folder: str, rungs: Sequence[int] = (), patience: float = 0.0) -> dict[str, Any]:
    """Train one trial; at each of `rungs` wait up to `patience` seconds for the driver's verdict.

    Returns `status`, "done" or "paused", and `epoch`, the epochs trained. A trial that is paused, or was killed, goes
    on with the same call; rungs where the driver said go are passed without another look.

    Raises:
        TimeoutError: another process is at work in the folder.
        ValueError: what `train` raises.
    """
    home = Path(folder)
    with _alone_in(home):
        if ranks.is_first() and not (home / traffic.PREDICTED).exists():
            write_json(home / traffic.PREDICTED, _predicted(config))
        asking = Rungs(rungs, partial(_ask, home, patience), lambda epoch: bool(traffic.verdict(home, epoch)))
        result = train(config, home, asking)
    return {"status": result.status, "epoch": len(result.history)}


def whole(config: Config, folder: str) -> None:
    """Train, measure and record one run in full, or go on with it where it was stopped.

    Raises:
        TimeoutError: another process is at work in the folder.
        ValueError: what `train` raises.
    """
    with _alone_in(Path(folder)):
        train(config, Path(folder))


def timing(folder: str, reference: str | None = None, record: str = FILE) -> dict[str, Any]:
    """Time a run beside the dense ONNX file `reference` (None: its own) and add that to its file `record`.

    Raises:
        TimeoutError: another process is at work in the folder.
        ValueError: what `time_run` raises.
    """
    home = Path(folder)
    with _alone_in(home):
        return time_run(home, Path(reference) if reference else None, record)


def timing_priced(folder: str, reference: str | None = None) -> dict[str, Any] | None:
    """Time a run whose latency came from a table; None where that is of another device.

    Raises:
        TimeoutError: another process is at work in the folder.
        ValueError: what `time_priced` raises.
    """
    home = Path(folder)
    with _alone_in(home):
        return time_priced(home, Path(reference) if reference else None)


def test(folder: str, data: Config | None = None) -> dict[str, float]:  # noqa: PT028  # not a test
    """Read the test split for a finished run, once: the numbers are in `test.json` from then on.

    `data` replaces that of the run's configuration where the files lie elsewhere now.

    Raises:
        TimeoutError: another process is at work in the folder.
        ValueError: what `test_metrics` raises.
    """
    home = Path(folder)
    with _alone_in(home):
        if not (home / traffic.TEST).exists():
            write_json(home / traffic.TEST, test_metrics(home, data))
        return traffic.test_numbers(home)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder; a process that is about to die may hold it a little longer. Of several ranks, the first does."""
    if not ranks.is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / LOCK, timeout=_LOCK_SECONDS):
            yield
    except filelock.Timeout:
        raise TimeoutError(f"another process has been at work in {folder} for {_LOCK_SECONDS:g} s") from None


def _predicted(config: Config) -> dict[str, Any]:
    try:
        return predict(config)
    except Exception as error:  # a method that cannot be predicted may train all the same; what is wrong, training says
        return {"error": one_line(error)}


def _ask(folder: Path, patience: float, result: Result, epoch: int) -> bool:
    name = traffic.rung_file(epoch)
    if not (folder / name).exists():
        result.save(folder, name)
    until = time.monotonic() + patience
    while (said := traffic.verdict(folder, epoch)) is None and time.monotonic() < until:
        time.sleep(_PAUSE)
    return bool(said)
