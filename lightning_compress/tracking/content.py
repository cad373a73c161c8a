"""What a W&B run holds, told the same way of the log on disk and of the server, and what one lacks of the other."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

Entries = Mapping[str, tuple[int, str]]


@final
@dataclass(frozen=True)
class Artifact:
    """One committed version of an artifact: size in bytes and digest of each file by its path."""

    name: str
    entries: Entries


@final
@dataclass(frozen=True)
class Content:
    """History rows as they were logged, summary, keys of the config, size of each file (None: unknown), artifacts."""

    rows: tuple[Mapping[str, Any], ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    config: frozenset[str] = frozenset()
    files: Mapping[str, int | None] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()


def stamp(row: Mapping[str, Any]) -> float:
    """What tells a row from every other of its run: the time it was logged at, which no upload changes."""
    return float(row["_timestamp"])


def lacking(local: Content, remote: Content) -> list[str]:
    """What of `local` is not in `remote`, one line each; empty when everything arrived.

    Example:
        >>> lacking(Content(summary={"size": 3}, config=frozenset({"lr"})), Content(summary={"size": 3}))
        ['config: lr']
    """
    return [
        *_rows(local, remote),
        *_listed("summary", [key for key, value in _public(local.summary) if not _holds(remote.summary, key, value)]),
        *_listed("config", sorted(local.config - remote.config)),
        *_files(local, remote),
        *(line for artifact in local.artifacts for line in _artifact(artifact, remote)),
    ]


def _rows(local: Content, remote: Content) -> list[str]:
    counts = Counter(map(stamp, remote.rows))
    arrived = {stamp(row): row for row in remote.rows}
    lines = []
    absent = [row for row in local.rows if stamp(row) not in arrived]
    if absent:
        lines.append(f"history: {len(absent)} of {len(local.rows)} rows, the first with {_named(absent[0])}")
    damaged = [
        row
        for row in local.rows
        if stamp(row) in arrived and not all(_holds(arrived[stamp(row)], key, value) for key, value in _public(row))
    ]
    if damaged:
        lines.append(f"history: {len(damaged)} rows have other values, the first with {_named(damaged[0])}")
    repeated = sum(counts[stamp(row)] > 1 for row in local.rows)
    return [*lines, *([f"history: {repeated} rows are there more than once"] if repeated else [])]


def _files(local: Content, remote: Content) -> list[str]:
    absent = sorted(set(local.files) - set(remote.files))
    # W&B writes its own files anew with every upload; what a run logged lies under media and stays as it is.
    other = [
        f"{name} has {remote.files[name]} bytes, not {size}"
        for name, size in sorted(local.files.items())
        if name in remote.files and size is not None and name.startswith("media/") and remote.files[name] != size
    ]
    return [*_listed("files", absent), *_listed("files", other)]


def _artifact(wanted: Artifact, remote: Content) -> list[str]:
    found = [artifact for artifact in remote.artifacts if artifact.name == wanted.name]
    if any(dict(artifact.entries) == dict(wanted.entries) for artifact in found):
        return []
    if not found:
        return [f"artifact {wanted.name}: not there, or not committed"]
    return [f"artifact {wanted.name}: no version has these files: {', '.join(sorted(wanted.entries))}"]


def _public(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in values.items() if not key.startswith("_")]


def _holds(values: Mapping[str, Any], key: str, value: Any) -> bool:
    """Whether `values` has it: equal where it is a number; of a table or a figure the server rewrites the links."""
    if key not in values:
        return False
    if isinstance(value, int | float) and isinstance(values[key], int | float):
        return math.isclose(value, values[key], rel_tol=1e-9)
    return isinstance(value, dict) or bool(values[key] == value)


def _listed(title: str, names: list[str]) -> list[str]:
    return [f"{title}: {', '.join(names)}"] if names else []


def _named(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in _public(row)[:1]) or "no values"
