"""What an ONNX file claims beside what it holds, read from its wire format: nothing is parsed, allocated or run.

The format is protobuf's: a message is a row of fields, each a number with its kind, then an integer or so many bytes.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import final

_INTEGER, _BYTES = 0, 2
_SIZES = {1: 8, 5: 4}
#: Which fields of which message hold messages: the way to every node and tensor of a model.
_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
}
_IR_VERSION, _GRAPH, _OPSETS = 1, 7, 8
_OLDEST_IR = 3
_DIMS, _DATA, _EXTERNAL = 1, (4, 5, 6, 7, 9, 10, 11), 13
_MOST_DIMS = 64
#: Of the narrowest type, which has 2 bits.
_MOST_ENTRIES_PER_BYTE = 4
# A field may have 2 bytes in the file and take some 100 in a parser; large networks have some 100,000 fields.
_MOST_FIELDS = 250_000
_CUT = "it ends in the middle, or says that of a part of it"

Field = tuple[int, int | memoryview]


def check(model: memoryview, folder: Path) -> int:
    """See that a model in `folder` is whole and that its tensors are no larger than the data that it has for them.

    Returns how many bytes the other files have that hold some of that data.

    Raises:
        ValueError: it is not, or its data lies outside the folder.

    >>> check(memoryview(b"GIF89a"), Path())
    Traceback (most recent call last):
        ...
    ValueError: it is no protobuf file
    """
    walk = _Walk()
    top = [(number, value) for number, value in walk.fields(model) if number in (_IR_VERSION, _GRAPH, _OPSETS)]
    numbers = [number for number, _ in top]
    if numbers.count(_GRAPH) != 1 or not {_IR_VERSION, _OPSETS} <= set(numbers):
        raise ValueError("it has no graph, no version or no operator set")
    version = dict(top)[_IR_VERSION]
    if not isinstance(version, int) or version < _OLDEST_IR:
        raise ValueError(f"its IR version is {version}, and the oldest is {_OLDEST_IR}")
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        if kind == "sparse tensor":
            raise ValueError("it has sparse tensors, which are not taken")
        if kind == "tensor":
            _check_tensor(walk, message, folder)
            continue
        inside = _INSIDE[kind]
        for number, value in walk.fields(message):
            if number in inside and isinstance(value, memoryview):
                waiting.append((inside[number], value))
    return sum(walk.outside.values())


@final
class _Walk:
    """Reads fields, no more of them than a file may have; `outside` has the sizes of the other files with data."""

    def __init__(self) -> None:
        self.left = _MOST_FIELDS
        self.outside: dict[Path, int] = {}

    def fields(self, message: memoryview) -> Iterator[Field]:
        """Number and value of every field of a message."""
        at = 0
        while at < len(message):
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} fields")
            key, at = _integer(message, at)
            number, kind = key >> 3, key & 7
            if not number or kind not in (_INTEGER, _BYTES, *_SIZES):
                raise ValueError("it is no protobuf file")
            value: int | memoryview
            if kind == _INTEGER:
                value, at = _integer(message, at)
            else:
                size, at = _integer(message, at) if kind == _BYTES else (_SIZES[kind], at)
                if size > len(message) - at:
                    raise ValueError(_CUT)
                value, at = message[at : at + size], at + size
            yield number, value


def _check_tensor(walk: _Walk, tensor: memoryview, folder: Path) -> None:
    dims: list[int] = []
    held, outside = 0, []
    for number, value in walk.fields(tensor):
        if number == _DIMS and len(dims) < _MOST_DIMS:
            dims += [value] if isinstance(value, int) else _integers(value)
        elif number in _DATA:
            held += 1 if isinstance(value, int) else len(value)
        elif number == _EXTERNAL and isinstance(value, memoryview):
            outside.append(value)
    if outside:
        held = _held_outside(walk, outside, folder)
    if len(dims) >= _MOST_DIMS or prod(dims) > _MOST_ENTRIES_PER_BYTE * held:  # less than 0 is above 2^63 here
        raise ValueError(f"a tensor of shape {str(dims)[:60]} has {held} bytes of data")


def _held_outside(walk: _Walk, entries: list[memoryview], folder: Path) -> int:
    """Bytes of a tensor in another file."""
    said = {}
    for entry in entries:
        pair = {number: bytes(value[:4096]) for number, value in walk.fields(entry) if isinstance(value, memoryview)}
        said[pair.get(1, b"")] = pair.get(2, b"").decode(errors="replace")
    name = said.get(b"location", "")
    path = (folder / name.replace("\0", "?")).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"its data is to be in {name[:80]!r}, which is no file in its folder")
    start, size = (said.get(key, "0") for key in (b"offset", b"length"))
    room = walk.outside[path] = path.stat().st_size
    whole = start.isdecimal() and size.isdecimal() and len(start + size) < 40
    if not whole or int(start) + int(size) > room:
        raise ValueError(f"its data is to be {size[:20]} bytes from {start[:20]} on in {name[:80]!r}, which has {room}")
    return int(size) or room - int(start)


def _integers(packed: memoryview) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(packed) and len(found) < _MOST_DIMS:
        value, at = _integer(packed, at)
        found.append(value)
    return found


def _integer(message: memoryview, at: int) -> tuple[int, int]:
    """The integer at a place, 7 bits to a byte, and where it ends."""
    value, shift = 0, 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError(_CUT)
