"""Latencies of a study's models on other devices: files that measure.py of a deploy folder wrote, kept in the study."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from lightning_compress.core.files import sha256, write_json
from lightning_compress.sweep.runs import reference_file
from lightning_compress.sweep.spec import StudySpec

FOLDER = "latency"
_SCHEMA = 1


@final
@dataclass(frozen=True)
class Elsewhere:
    """What measure.py found on a device: milliseconds per batch, and the ratio to the dense network beside it.

    `run` is the study's run whose model it is, "" where nobody has looked that up yet.
    """

    device: str
    runtime: str
    kernels: str
    threads: int
    batch_size: int
    latency_rounds: int
    latency_ms: float
    latency_p10_ms: float
    latency_p90_ms: float
    latency_ratio: float
    dense_latency_ms: float
    model_sha256: str
    dense_sha256: str
    run: str = ""

    @property
    def label(self) -> str:
        """What sets its column apart from others."""
        return f"{self.device}, {self.threads} thread{'s' if self.threads > 1 else ''}, batch {self.batch_size}"


def bring(folder: Path, spec: StudySpec, files: Sequence[Path]) -> list[Elsewhere]:
    """Keep the latencies in `files` with the study in `folder`; those of the same model, device and way are replaced.

    Raises:
        ValueError: a file is damaged, or its models are not those of the study; then nothing is kept.
        FileNotFoundError: there is no such file.
    """
    models = {sha256(path): path.parent.name for path in sorted((folder / "runs").glob("*/model.onnx"))}
    found = [_owned(folder, spec, file, models) for file in files]
    for one in found:
        keep(folder, one)
    return found


def keep(folder: Path, one: Elsewhere) -> None:
    """Keep a latency with the study in `folder`."""
    key = hashlib.sha256(f"{one.run} {one.label}".encode()).hexdigest()[:12]
    write_json(folder / FOLDER / f"{one.run}-{key}.json", {"schema": _SCHEMA, **asdict(one)})


def of_run(folder: Path, run: str) -> tuple[Elsewhere, ...]:
    """The latencies kept of a run, by device; those of a file that the run no longer has say nothing about it."""
    kept = [read(path) for path in sorted((folder / FOLDER).glob(f"{run}-*.json"))]
    model = folder / "runs" / run / "model.onnx"
    own = sha256(model) if kept and model.exists() else ""
    return tuple(sorted((one for one in kept if one.model_sha256 == own), key=lambda one: one.label))


def read(file: Path) -> Elsewhere:
    """The latency in a file.

    Raises:
        ValueError: the file is not one that measure.py wrote.
        FileNotFoundError: there is no such file.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        schema = data.pop("schema")
        one = Elsewhere(**data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} is no file that measure.py wrote, or is damaged ({error})") from error
    odd = [field.name for field in fields(one) if not _is_sound(field.type, getattr(one, field.name))]
    if schema != _SCHEMA or odd:
        what = f"schema {schema!r}" if schema != _SCHEMA else f"{odd[0]} {getattr(one, odd[0])!r}"
        raise ValueError(f"{file} is no file that measure.py wrote, or is damaged: it has {what}")
    return one


def _is_sound(kind: Any, value: object) -> bool:
    if kind is str:
        return isinstance(value, str)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return number and (kind is float or isinstance(value, int))


def _owned(folder: Path, spec: StudySpec, file: Path, models: dict[str, str]) -> Elsewhere:
    one = read(file)
    if one.model_sha256 not in models:
        raise ValueError(
            f"{file}: the model.onnx that was measured (sha256 {one.model_sha256[:12]}) is not one of the study in "
            f"{folder}: give the study that the deploy folder was picked from"
        )
    run = models[one.model_sha256]
    dense = reference_file(folder, spec) or folder / "runs" / run / "dense.onnx"
    if not dense.exists() or one.dense_sha256 != sha256(dense):
        raise ValueError(
            f"{file}: the dense.onnx that was measured beside (sha256 {one.dense_sha256[:12]}) is not {dense}: "
            "ratios to another network cannot be compared; measure with the deploy folder as it was written"
        )
    return Elsewhere(**{**asdict(one), "run": run})
