"""The file that W&B keeps of a run: records in the framing of LevelDB's logs.

A file begins with 7 bytes: `:W&B`, the magic number and the version. Blocks of 32 KiB follow (the first one counts the
7 bytes too); a record is one fragment or several, each with a header of 7 bytes: CRC-32 of type and data, length,
type. A block's last bytes are zeros where no header fits.
"""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

_BLOCK = 32768
_START = struct.Struct("<4sHB")
_HEADER = struct.Struct("<IHB")
_IDENTITY = (b":W&B", 0xBEE1, 0)
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path) -> tuple[list[bytes], bool]:
    """The records in the log at `path`, and whether that is all of the file.

    A process that is killed leaves the last record torn: reading ends before the first damaged one.

    Raises:
        ValueError: the file is no log of W&B.
    """
    raw = path.read_bytes()
    if len(raw) < _START.size or _START.unpack_from(raw) != _IDENTITY:
        raise ValueError(f"{path} is no log of W&B: it begins with {raw[: _START.size]!r}")
    records: list[bytes] = []
    position, whole, parts = _START.size, _START.size, b""
    while (found := _fragment(raw, position)) is not None:
        kind, data, position = found
        parts = data if kind in (_FULL, _FIRST) else parts + data
        if kind in (_FULL, _LAST):
            records.append(parts)
            whole = position
    return records, not raw[whole:].strip(b"\0")


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a log that holds `records`."""
    log = bytearray(_START.pack(*_IDENTITY))
    for record in records:
        start, first = 0, True
        while first or start < len(record):
            left = _BLOCK - len(log) % _BLOCK
            if left < _HEADER.size:
                log += bytes(left)
                left = _BLOCK
            data = record[start : start + left - _HEADER.size]
            start += len(data)
            last = start == len(record)
            kind = (_FULL if last else _FIRST) if first else (_LAST if last else _MIDDLE)
            log += _HEADER.pack(_checksum(kind, data), len(data), kind) + data
            first = False
    path.write_bytes(log)


def _fragment(raw: bytes, position: int) -> tuple[int, bytes, int] | None:
    """Type and data of the fragment at `position`, and where the next one begins; None where it is torn."""
    left = _BLOCK - position % _BLOCK
    if left < _HEADER.size:
        position += left
    if position + _HEADER.size > len(raw):
        return None
    checksum, length, kind = _HEADER.unpack_from(raw, position)
    start = position + _HEADER.size
    data = raw[start : start + length]
    if len(data) < length or not _FULL <= kind <= _LAST or _checksum(kind, data) != checksum:
        return None
    return kind, data, start + length


def _checksum(kind: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(bytes([kind])))
