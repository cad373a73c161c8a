"""Upload the W&B runs of a folder, and see that they arrived.

`wandb sync` ends well also where artifacts did not arrive, sends all rows of a log once more after an interruption, and
looks for staged artifacts where they lay when the run was logged. Here the server is asked before and after: what it
lacks is sent, nothing twice, and a run counts as uploaded when all of it is found there.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lightning_compress.core.files import write_json
from lightning_compress.tracking.content import Content, lacking, stamp
from lightning_compress.tracking.leg import Leg, read_leg, together
from lightning_compress.tracking.mode import inside
from lightning_compress.tracking.remote import Remote

MARK = "synced.json"
AT_ONCE = 20  # runs in one upload: what is uploaded when it is stopped is not sent again
UPLOAD_SECONDS = 900.0  # for that many


@final
@dataclass(frozen=True)
class SyncReport:
    """Runs by how they ended: found complete at the server (`uploaded` now or `before`), or `missing` something."""

    server: str
    uploaded: tuple[str, ...]
    before: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]

    @property
    def complete(self) -> bool:
        """Whether everything there is was found at the server.

        >>> SyncReport("https://here", ("a",), (), {"b": ("config: lr",)}).complete
        False
        """
        return not self.missing

    def __str__(self) -> str:
        counts = f"{len(self.uploaded)} runs uploaded and verified, {len(self.before)} verified before"
        lines = [f"{run}: {line}" for run, found in self.missing.items() for line in found]
        if not lines:
            return f"{counts}: all runs are at {self.server}"
        return "\n".join([f"{counts}, {len(self.missing)} not complete at {self.server}; missing there:", *lines])


def sync(folder: Path) -> SyncReport:
    """Upload every W&B run kept under `folder` to the server that is logged in to, and verify that it arrived.

    Runs whose upload was verified before are not looked at again unless they were logged to since.

    Raises:
        ValueError: there are no runs under `folder`.
        ConnectionError: there is no login, or the server does not answer.
    """
    folder = folder.resolve()
    logs = sorted((folder / "wandb").glob("*run-*/run-*.wandb"))
    if not logs:
        raise ValueError(f"{folder} holds no W&B runs: there is no {folder / 'wandb' / '*run-*' / 'run-*.wandb'}")
    with inside(folder):
        remote = Remote()
        mark = _Mark(folder / "wandb" / MARK, remote.url)
        runs, missing = _runs(logs)
        before = [run for run, legs in runs.items() if mark.holds(legs)]
        todo = {run: legs for run, legs in runs.items() if run not in before}
        uploaded: list[str] = []
        for batch in _batches(list(todo), AT_ONCE):
            _upload(folder, [_lacked(todo[run], remote) for run in batch])
            for run in batch:
                found = _verify(folder, todo[run], remote)
                if found:
                    missing[run] = found
                else:
                    mark.add(todo[run])
                    uploaded.append(run)
    return SyncReport(remote.url, tuple(uploaded), tuple(before), missing)


def _runs(logs: Iterable[Path]) -> tuple[dict[str, list[Leg]], dict[str, tuple[str, ...]]]:
    """The legs of each run in the order they were begun, and the logs that cannot be read."""
    runs: dict[str, list[Leg]] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for log in logs:
        try:
            leg = read_leg(log)
        except (ValueError, OSError) as error:
            missing[log.stem] = (f"everything in {log}: it cannot be read ({error})",)
            continue
        if leg is not None:
            runs.setdefault(f"{leg.project}/{leg.run}", []).append(leg)
    return {run: sorted(legs, key=lambda leg: leg.started) for run, legs in runs.items()}, missing


@final
@dataclass(frozen=True)
class _Push:
    """Legs of a run that have to be sent, and the rows that the server has already."""

    legs: Sequence[Leg]
    there: frozenset[float]


def _lacked(legs: Sequence[Leg], remote: Remote) -> _Push:
    """From the first leg that is not all there on: the last one that is sent leaves its summary."""
    found = _ask(legs[0], remote)
    there = frozenset(map(stamp, found.rows))
    if lacking(together(legs), found):
        for number, leg in enumerate(legs):
            alone = together([leg])
            last = Content(alone.rows, {}, alone.config, alone.files, alone.artifacts)
            if number == len(legs) - 1 or lacking(last, found):
                return _Push(legs[number:], there)
    return _Push((), there)


def _ask(leg: Leg, remote: Remote) -> Content:
    return remote.read(leg.entity, leg.project, leg.run) or Content()


def _verify(folder: Path, legs: Sequence[Leg], remote: Remote) -> tuple[str, ...]:
    try:
        found = lacking(together(legs), _ask(legs[0], remote))
    except ConnectionError as error:
        return (f"not verified, the server does not answer ({error})",)
    gone = [path for leg in legs for path in leg.staged() if not _moved(folder, path).exists()] if found else []
    return (*found, *(f"{path.name}: this file of an artifact is no longer in the folder" for path in gone))


def _moved(folder: Path, path: Path) -> Path:
    """Where a staged file lies now: the folder may have been moved or copied since it was logged."""
    return path if path.exists() else folder / "wandb" / "data" / "artifacts" / "staging" / path.name


def _upload(folder: Path, pushes: Sequence[_Push]) -> None:
    with _logs(folder, pushes) as logs:
        if not logs:
            return
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--include-synced", *map(str, logs)]
        try:
            # W&B keeps a log of its own under the working directory.
            subprocess.run(command, cwd=folder, capture_output=True, timeout=UPLOAD_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return  # what did not arrive is named by the verification


@contextmanager
def _logs(folder: Path, pushes: Sequence[_Push]) -> Iterator[list[Path]]:
    """Files to send: the log itself, or beside it a copy without what is there and with paths that hold now."""
    logs, copies = [], []
    for push in pushes:
        for leg in push.legs:
            known = {stamp(row) for row in leg.content.rows} & push.there
            if leg.whole and not known and all(path.exists() for path in leg.staged()):
                logs.append(leg.path)
                continue
            copy = leg.path.with_name(f"again-{leg.path.name}")
            leg.rewrite(copy, without=known, moved=lambda path: _moved(folder, path))
            copies.append(copy)
    try:
        yield [*logs, *copies]
    finally:
        for copy in copies:
            for file in copy.parent.glob(f"{copy.name}*"):
                file.unlink()


@final
class _Mark:
    """Which logs were found complete at the server, by their length: a longer one was written to since."""

    def __init__(self, path: Path, server: str) -> None:
        self._path, self._server = path, server
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._sizes: dict[str, int] = known["logs"] if known.get("server") == server else {}

    def holds(self, legs: Iterable[Leg]) -> bool:
        return all(self._sizes.get(self._name(leg)) == leg.path.stat().st_size for leg in legs)

    def add(self, legs: Iterable[Leg]) -> None:
        self._sizes |= {self._name(leg): leg.path.stat().st_size for leg in legs}
        write_json(self._path, {"server": self._server, "logs": self._sizes})

    def _name(self, leg: Leg) -> str:
        return leg.path.parent.name


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
