"""Where a study is kept: memory, a journal in its folder, or a database server.

One process writes to a journal, whoever claimed the folder; any number may read it meanwhile.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, final

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

JOURNAL = "journal.log"
_RECORD = b'{"op_code":'
_HELD_SECONDS = 0.5
_DRIVERS = {"postgresql": "psycopg, and begin the URL with postgresql+psycopg://", "mysql": "PyMySQL"}


def open_storage(folder: Path | None, storage: str | None = None) -> BaseStorage:
    """The storage of a study: `storage` is a database URL, or None or "journal" for a journal in `folder`.

    Without a folder and a URL everything is lost with the process.

    Raises:
        ValueError: the journal is damaged, the server cannot be reached, or its driver is not installed.
    """
    if storage is not None and storage != "journal":
        return _database(storage)
    if folder is None:
        return InMemoryStorage()
    journal = folder.resolve() / JOURNAL
    try:
        torn_at(journal)
        return JournalStorage(_Journal(journal))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(
            f"{journal} is damaged ({error}): put back a copy, or write --fresh to begin the study anew"
        ) from error


def torn_at(journal: Path) -> int | None:
    """Where the last record begins if it was cut off while it was written, else None.

    Raises:
        ValueError: what the file ends with is no record.
    """
    if not journal.exists():
        return None
    # A record is a few kilobytes; the window doubles until it holds a whole line.
    size, window = journal.stat().st_size, 1 << 16
    with journal.open("rb") as file:
        while True:
            file.seek(max(0, size - window))
            end = file.read()
            if window >= size or b"\n" in end[:-1]:
                break
            window *= 2
    lines = end.splitlines(keepends=True)
    if not lines:
        return None
    if lines[-1].endswith(b"\n"):
        json.loads(lines[-1])
        return None
    if not lines[-1].startswith(_RECORD[: len(lines[-1])]):
        raise ValueError(f"its last line is no record: {lines[-1][:40]!r}")
    return size - len(lines[-1])


@final
class _Journal(JournalFileBackend):
    """A journal that no interrupted write can damage.

    Optuna ignores a torn last line when it reads, but glues the next record to it, which damages both.
    The path must be absolute: behind a stale lock on a relative one Optuna waits for ever, on an absolute one 30 s.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._mended = path, False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all of `logs` or nothing."""
        if not self._mended:
            self._mend()
        size = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self._path, size)
            raise

    def _mend(self) -> None:
        # Only before the first write: a reader must not cut the line that the study's process is writing.
        _release(self._path.with_name(f"{self._path.name}.lock"))
        torn = torn_at(self._path)
        if torn is not None:
            os.truncate(self._path, torn)
        self._mended = True


def _release(lock: Path) -> None:
    """Remove the lock of a process that was killed; a live one (a dashboard) holds it for milliseconds."""
    end = time.monotonic() + _HELD_SECONDS
    while lock.is_symlink() and time.monotonic() < end:
        time.sleep(0.01)
    lock.unlink(missing_ok=True)


def _database(url: str) -> BaseStorage:
    # Here, because it takes a third of a second and a study in a journal needs none of it.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(
            f"storage: {url!r} is no database URL: write journal, sqlite:///study.db "
            "or postgresql+psycopg://user:password@host/database"
        ) from error
    # The password of the URL must not reach a log.
    shown, kind = parsed.render_as_string(hide_password=True), parsed.get_backend_name()
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        install = _DRIVERS.get(kind, "the package of that database")
        raise ValueError(f"storage: no driver for {shown}: pip install {install}") from error
    except SQLAlchemyError as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise ValueError(
            f"storage: cannot use {shown} ({reason}): check that the server runs, and the host, the port, the user "
            "and that the database exists"
        ) from error
