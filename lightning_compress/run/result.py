"""The record of one run: the truth that logs, tables and reports mirror."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, final

from lightning_compress.core.files import write_json

SCHEMA = 1
FILE = "result.json"
_AGAIN = "remove that file and train again, which measures anew from the last checkpoint"


@final
@dataclass
class Result:
    """What one run gave.

    `metrics` are by split and name ("val/accuracy", a share in [0, 1]); "test/..." is there only if the test split was
    read. `cost` holds counts, bytes, milliseconds and the latency's ratio to the dense float network measured in the
    same call. `layers` is the per-layer table, `history` the curve by epoch, `files` paths relative to the run;
    `provenance` has what `tracking/provenance.py` tells, "teacher", the hash of the one that was learned from, and
    "wandb", the address of the run's W&B page if it was online.

    >>> Result(name="a", metrics={"val/accuracy": 0.9}).get("val/accuracy")
    0.9
    """

    name: str
    status: str = "done"
    metrics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    wall_seconds: float = 0.0
    train_flops: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    study: str | None = None
    trial: int | None = None
    error: str | None = None
    schema: int = SCHEMA

    def get(self, name: str) -> float:
        """A number by its flat name: "val/accuracy", "cost/packed_bytes".

        Raises:
            KeyError: there is none of that name; the message lists those there are.
        """
        numbers = self.numbers
        if name not in numbers:
            raise KeyError(f"no {name!r} in the result of {self.name!r}; it has {', '.join(sorted(numbers))}")
        return numbers[name]

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers by flat name."""
        costs = {f"cost/{key}": float(value) for key, value in self.cost.items() if isinstance(value, int | float)}
        return {**self.metrics, **costs}

    def save(self, folder: Path, name: str = FILE) -> Path:
        """Write `folder/result.json`, or under another `name`.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        path = folder / name
        try:
            write_json(path, asdict(self))
        except ValueError as error:
            numbers = {**self.metrics, **{f"cost/{key}": value for key, value in self.cost.items()}}
            bad = [
                f"{key}={value}"
                for key, value in numbers.items()
                if isinstance(value, float) and not math.isfinite(value)
            ]
            raise ValueError(f"the result of {self.name!r} is not finite ({', '.join(bad) or error})") from error
        return path

    @classmethod
    def load(cls, folder: Path, name: str = FILE) -> Self:
        """Read `folder/result.json`, or another `name`.

        Raises:
            ValueError: the file is missing, damaged, or of another schema version.
        """
        path = folder / name
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no finished run: there is no {name} in it") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): {_AGAIN}") from error
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"{path} has schema {schema!r}, this version reads {SCHEMA}: {_AGAIN}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"{path} is damaged ({error}): {_AGAIN}") from error
