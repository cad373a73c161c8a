"""What is compared: runs, records of a table and studies, read from their files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import final

from lightning_compress.run import result as results
from lightning_compress.run.result import Result
from lightning_compress.sweep import publish
from lightning_compress.sweep import record as records
from lightning_compress.sweep.record import StudyRecord

_EXPECTED = (
    "a run's folder (with result.json), a study's folder (with study.json), or the JSON file of one run or record"
)


@final
@dataclass(frozen=True)
class Run:
    """A run or a record of a table; the `label` tells it from what it is compared with."""

    label: str
    result: Result

    @property
    def link(self) -> str | None:
        """Its page at W&B, if it was online."""
        return _web(self.result.provenance.get("wandb"))


@final
@dataclass(frozen=True)
class Study:
    """A study with what is finished of it; `link` is the page of its own W&B run, if that was online."""

    label: str
    record: StudyRecord
    link: str | None


def read(paths: Sequence[Path]) -> list[Run | Study]:
    """What the paths hold, in their order.

    Raises:
        ValueError: fewer than two paths, two of the same, or one that holds nothing whole to compare.
    """
    if len(paths) < 2:
        raise ValueError(f"compare: expected two or more of {_EXPECTED}; got {len(paths)}")
    files = [_file(path) for path in paths]
    for index, file in enumerate(files):
        if file in files[:index]:
            raise ValueError(f"compare: {paths[files.index(file)]} and {paths[index]} are the same; name it once")
    return [_read(file, label) for file, label in zip(files, labels(files), strict=True)]


def labels(files: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the files apart; a run and a study go by their folders.

    >>> labels([Path("runs/a/result.json"), Path("runs/b/result.json"), Path("han2015/lenet_5/seed0.json")])
    ['a', 'b', 'lenet_5/seed0']
    """
    shared = (results.FILE, records.FILE)
    parts = [(file.parent if file.name in shared else file.with_suffix("")).parts for file in files]
    least = [1 if file.name in shared else 2 for file in files]
    for more in range(max(map(len, parts))):
        found = ["/".join(part[-(start + more) :]) for part, start in zip(parts, least, strict=True)]
        if len(set(found)) == len(found):
            break
    return found


def _file(path: Path) -> Path:
    """The file that is read for a path."""
    for name in (records.FILE, results.FILE):
        if (path / name).is_file():
            return (path / name).resolve()
    if path.is_file() and path.suffix == ".json":
        return path.resolve()
    held = "is not there" if not path.exists() else "has neither" if path.is_dir() else "is another file"
    raise ValueError(f"compare: expected {_EXPECTED}; {path} {held}")


def _read(file: Path, label: str) -> Run | Study:
    if file.name != records.FILE:
        return Run(label, _result(file))
    mark = file.parent / publish.MARK
    try:
        url = json.loads(mark.read_text(encoding="utf-8")).get("url") if mark.exists() else None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{mark} is damaged ({error}): remove it") from error
    return Study(label, records.collect(file.parent), _web(url))


def _result(file: Path) -> Result:
    """A run's result, or a record of a table: one with its row, without curves and layers."""
    if file.name == results.FILE:
        return Result.load(file.parent)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): put back a copy") from error
    known = {field.name: field for field in fields(Result)} | {"row": None}
    needed = {"name", "status", "metrics", "cost", "config", "provenance"}
    if not isinstance(data, dict) or not needed <= data.keys() <= known.keys():
        raise ValueError(f"{file} is no result of one run: expected {_EXPECTED}")
    return Result(**{key: value for key, value in data.items() if key != "row"})


def _web(url: object) -> str | None:
    """An address that a page may link to; a file may say anything."""
    return url if isinstance(url, str) and url.startswith(("https://", "http://")) else None
