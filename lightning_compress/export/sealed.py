"""ONNX files that are known to be whole, or tried out first, before a runtime opens them.

A file of ours begins with a seal: a metadata entry with the SHA-256 of all that follows, which is 97 bytes long and,
to anybody else who reads the file, one more entry in `metadata_props`. It tells damage, a flipped bit in a weight as
well; whoever changes a file on purpose can seal it again.
"""

import hashlib
import mmap
import signal
import subprocess
import sys
from pathlib import Path

from lightning_compress.export import structure

VERSION = 1
_KEY, _DIGITS = b"lightning_compress.sha256", 64
_VALUE = _DIGITS + 2
# Field 14 of the model, an entry with the fields 1, the key, and 2, the value; each with its length.
_START = (
    bytes([14 << 3 | 2, 4 + len(_KEY) + _VALUE, 1 << 3 | 2, len(_KEY)])
    + _KEY
    + bytes([2 << 3 | 2, _VALUE])
    + b"%d:" % VERSION
)
SEAL = len(_START) + _DIGITS
#: What protobuf, and with it ONNX, can hold.
MOST_BYTES = 2**31 - 1
# Opening a file takes some copies of its weights, float ones of int8 codes; beside that little.
_ROOM, _ROOM_PER_BYTE, _SECONDS = 2**30, 8, 60
_TRIAL = Path(__file__).with_name("trial.py")
_tried: set[bytes] = set()


def sealed(model: bytes) -> bytes:
    """The bytes of an ONNX model with the seal before them.

    >>> sealed(b"")[-8:]
    b'7852b855'
    """
    return _START + hashlib.sha256(model).hexdigest().encode() + model


def checked(path: Path) -> bool:
    """See that an ONNX file is fit to be opened here; whether it is sealed, and so known to be what was written.

    A file without a seal, from elsewhere or older than seals, is opened by another process first, under limits on its
    memory and time, unless that went well before. In any file no tensor may be larger than its data, and no data may
    lie outside the file's folder.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is damaged, no ONNX model, larger than 2 GiB, or more than ONNX Runtime can take.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no ONNX file at {path}: export the model first or correct the path")
    size = path.stat().st_size
    if not 0 < size <= MOST_BYTES:
        raise _unfit(path, f"it has {size:,} bytes, and ONNX files 1 to {MOST_BYTES:,}")
    with path.open("rb") as file:
        held = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    whole = _is_sealed(path, held)
    try:
        outside = structure.check(held, path.parent)
    except ValueError as error:
        raise _unfit(path, str(error)) from None
    whole = whole and not outside  # of which the seal knows nothing
    digest = hashlib.sha256(b"" if whole else held).digest()
    if not whole and digest not in _tried:
        _try(path, size + outside)
        _tried.add(digest)
    return whole


def _is_sealed(path: Path, file: memoryview) -> bool:
    """Whether there is a seal that is right: one that is damaged itself is still known for one."""
    head = bytes(file[: len(_START)])
    same = sum(ours == theirs for ours, theirs in zip(_START, head, strict=False))
    if same <= len(head) // 2:
        return False
    if head[:-2] == _START[:-2] and head[-1:] == b":" and head != _START:
        raise _unfit(path, f"its seal has version {head[-2:-1].decode(errors='replace')}, this reads {VERSION}")
    if bytes(file[:SEAL]) != _START + hashlib.sha256(file[SEAL:]).hexdigest().encode():
        raise _unfit(path, "it is damaged, not what its own checksum says")
    return True


def _try(path: Path, size: int) -> None:
    """Have another process open a file with so many bytes of weights."""
    room = _ROOM + _ROOM_PER_BYTE * size
    command = [sys.executable, "-P", "-W", "ignore", str(_TRIAL), str(path), str(room)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _unfit(path, f"opening it and running it once took more than {_SECONDS} s") from None
    if done.returncode < 0:
        raise _unfit(path, f"ONNX Runtime died of it ({signal.Signals(-done.returncode).name})")
    if done.returncode:
        raise _unfit(path, done.stderr.strip()[-400:])


def _unfit(path: Path, why: str) -> ValueError:
    return ValueError(f"cannot load {path}: expected a whole ONNX model, but {why}; export or copy it again")
