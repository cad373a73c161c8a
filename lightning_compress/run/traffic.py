"""The files by which a run and its driver speak, all in the run's folder.

The run writes `predicted.json` before it trains, `rung-<E>.json` when it has trained to a rung, and `test.json` once
the test split was read; the driver answers a rung with `verdict-<E>.json`, which is `{"go": true}` or false.
"""

import json
from pathlib import Path

from lightning_compress.core.files import write_json

PREDICTED, TEST = "predicted.json", "test.json"


def rung_file(epoch: int) -> str:
    """Name of the file that holds the result of a run after `epoch` epochs.

    >>> rung_file(9)
    'rung-9.json'
    """
    return f"rung-{epoch}.json"


def decide(folder: Path, epoch: int, go: bool) -> None:
    """Tell the run in `folder` whether it goes on after `epoch`."""
    write_json(_verdict(folder, epoch), {"go": go})


def verdict(folder: Path, epoch: int) -> bool | None:
    """Whether the run in `folder` goes on after `epoch`, None where nobody has said."""
    path = _verdict(folder, epoch)
    return bool(json.loads(path.read_text())["go"]) if path.exists() else None


def test_numbers(folder: Path) -> dict[str, float]:
    """What the test split said about the run in `folder`, empty when it was not read."""
    path = folder / TEST
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _verdict(folder: Path, epoch: int) -> Path:
    return folder / f"verdict-{epoch}.json"
