"""The logs that W&B keeps of a run on disk: one for each time that the run was opened, a leg."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_compress.tracking.content import Artifact, Content, stamp
from lightning_compress.tracking.transaction_log import read_records, write_records
from lightning_compress.tracking.wandb import record_class


@final
@dataclass(frozen=True)
class Leg:
    """One log: whose it is, when it was begun, what it holds, and `whole`: whether nothing at its end is torn."""

    path: Path
    run: str
    project: str
    entity: str
    started: float
    records: tuple[Any, ...]
    content: Content
    whole: bool

    def staged(self) -> list[Path]:
        """Copies that its artifacts are uploaded from, where they lay when it was written."""
        return [Path(entry.local_path) for entry in _entries(self.records) if entry.local_path]

    def rewrite(self, to: Path, *, without: Collection[float], moved: Callable[[Path], Path]) -> None:
        """Write it to the file `to`, without the rows of those stamps and with staged copies where `moved` says."""
        kept = [record_class().FromString(record.SerializeToString()) for record in self.records]
        kept = [record for record in kept if not _is_row(record) or stamp(_values(record.history.item)) not in without]
        for entry in _entries(kept):
            if entry.local_path:
                entry.local_path = str(moved(Path(entry.local_path)))
        write_records(to, [record.SerializeToString() for record in kept])


def read_leg(path: Path) -> Leg | None:
    """What the log at `path` holds, or None where the run never got under way.

    Raises:
        ValueError: the file is no log of W&B.
    """
    data, whole = read_records(path)
    records = tuple(map(record_class().FromString, data))
    runs = [record.run for record in records if record.HasField("run")]
    if not runs or not any(_is_row(record) or record.HasField("exit") for record in records):
        return None
    return Leg(
        path=path,
        run=runs[0].run_id,
        project=runs[0].project,
        entity=runs[0].entity,
        started=runs[0].start_time.ToNanoseconds() / 1e9,
        records=records,
        content=_content(records, path.parent / "files"),
        whole=whole,
    )


def together(legs: Iterable[Leg]) -> Content:
    """What the server must hold of a run that was opened several times; the summary is the last leg's."""
    contents = [leg.content for leg in legs]
    return Content(
        rows=tuple(row for content in contents for row in content.rows),
        summary=contents[-1].summary,
        config=frozenset[str]().union(*(content.config for content in contents)),
        files={name: size for content in contents for name, size in content.files.items()},
        artifacts=tuple(artifact for content in contents for artifact in content.artifacts),
    )


def _content(records: Sequence[Any], folder: Path) -> Content:
    by_kind: dict[str, list[Any]] = {}
    for record in records:
        kind = record.WhichOneof("record_type")
        by_kind.setdefault(kind, []).append(getattr(record, kind))
    configs = [run.config for run in by_kind["run"]] + by_kind.get("config", [])
    files = [item.path for sent in by_kind.get("files", []) for item in sent.files]
    return Content(
        rows=tuple(_values(row.item) for row in by_kind.get("history", [])),
        summary=_summary(by_kind.get("summary", [])),
        config=frozenset(key for config in configs for key in _values(config.update) if key != "_wandb"),
        files={path: _size(folder / path) for path in files},
        artifacts=tuple(map(_artifact, by_kind.get("artifact", []))),
    )


def _summary(changes: Iterable[Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for change in changes:
        summary |= _values(change.update)
        for item in change.remove:
            if len(item.nested_key) < 2:
                summary.pop(_key(item), None)
    return summary


def _artifact(artifact: Any) -> Artifact:
    return Artifact(artifact.name, {entry.path: (entry.size, entry.digest) for entry in artifact.manifest.contents})


def _entries(records: Iterable[Any]) -> list[Any]:
    return [entry for record in records if record.HasField("artifact") for entry in record.artifact.manifest.contents]


def _is_row(record: Any) -> bool:
    return bool(record.HasField("history"))


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """Values by their key; of a table or a figure, that is written part by part, only that it is there."""
    return {_key(item): {} if len(item.nested_key) > 1 else json.loads(item.value_json) for item in items}


def _key(item: Any) -> str:
    return str(item.key or item.nested_key[0])


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
