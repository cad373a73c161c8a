"""What happened in a study, one JSON line each: the memory a restarted driver goes on from, and what `status` reads.

A line is on the disk before what it says is acted on. A process killed while it wrote leaves half a line at the end,
which the next one cuts off: nobody has acted on it. Some room is kept for the line that says that the disk is full.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, final

FILE, SPARE = "ledger.jsonl", "ledger.spare"
_SPARE_BYTES = 1 << 12
Event = dict[str, Any]


@final
class Ledger:
    """Appends to `<folder>/ledger.jsonl`; one process at a time.

    Raises:
        ValueError: a line in the middle cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.events = list(read(folder))
        self._cut()
        self._spare = folder / SPARE
        with suppress(OSError):  # where there is no room left for that either, the ledger may still have some
            self._spare.write_bytes(bytes(_SPARE_BYTES))

    def append(self, event: str, **data: Any) -> None:
        """Write one event down, durably.

        Raises:
            OSError: there is no room; nothing of it was written.
        """
        entry = {"at": round(time.time(), 3), "event": event, **data}
        try:
            self._write(entry)
        except OSError:
            if not self._spare.exists():
                raise
            self._spare.unlink()
            self._write(entry)
        self.events.append(entry)

    def of(self, event: str, **data: Any) -> Iterator[Event]:
        """Events of one kind whose fields have these values, the oldest first."""
        return (e for e in self.events if e["event"] == event and all(e.get(k) == v for k, v in data.items()))

    def _write(self, entry: Event) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, size)
            raise

    def _cut(self) -> None:
        if self.path.exists():
            whole = self.path.read_bytes().rpartition(b"\n")
            if whole[2]:
                os.truncate(self.path, len(whole[0]) + len(whole[1]))


def read(folder: Path) -> Iterator[Event]:
    """The events written so far; half a line at the end is left out.

    Raises:
        ValueError: a line in the middle cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            event: Event = json.loads(line)
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError("it is no event")
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({error}): put back a copy, or write --fresh to begin the study anew"
            ) from error
        yield event
