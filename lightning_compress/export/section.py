"""One tensor as the bytes of a compressed file, and back.

The bytes of a tensor are those of its mask, its levels, its scales, its zero points and its values (raw, or codes;
only those that the mask keeps), each by whichever coding takes the fewest bytes. Levels that a tensor before it in
the file has are not written again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.coding.entropy import decode_symbols, encode_symbols
from lightning_compress.coding.floats import decode_floats, encode_floats
from lightning_compress.coding.neighbours import decode_codes, encode_codes
from lightning_compress.coding.reader import Reader
from lightning_compress.coding.sparse import decode_mask, encode_mask, matrix_shape
from lightning_compress.core.stored import Stored, along, by_group

FLOAT = "<f4"
DTYPES = {torch.float32: FLOAT, torch.int64: "<i8", torch.int32: "<i4", torch.uint8: "|u1", torch.bool: "|b1"}
_TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_MOST_BITS, _MOST_LEVELS = 16, 1 << 16

How = dict[str, Any]
Payload = Callable[[NDArray[np.bool_] | None], bytes]


@final
@dataclass
class Tables:
    """The levels in a file so far, in the order in which they were first met."""

    found: list[Tensor] = field(default_factory=list)

    def index(self, levels: Tensor) -> int:
        """Where these levels are, bit for bit; as many as there are where they are not."""
        for place, known in enumerate(self.found):
            if known.shape == levels.shape and torch.equal(known.view(torch.int32), levels.view(torch.int32)):
                return place
        return len(self.found)


def to_bytes(array: NDArray[Any] | Tensor, dtype: str) -> bytes:
    """The entries of `array` in C order, as `dtype`.

    >>> to_bytes(np.array([1, 2]), "<i4").hex()
    '0100000002000000'
    """
    return np.asarray(array).astype(dtype).tobytes()


def _alphabet(bits: int, symmetric: bool) -> tuple[int, int]:
    """How many codes there are, and what makes them unsigned."""
    return (2**bits - 1, 2 ** (bits - 1) - 1) if symmetric else (2**bits, 0)


def encode(stored: Stored, tables: Tables) -> tuple[How, bytes]:
    """How a tensor is written, as a header says it, and its bytes; a mask is written only where that is shorter.

    Keys: "d" dtype if not float32, "b" bits of a code, "x" axis of the scales, "g" sizes of their groups or the one
    that all but the last have, "u" 1 for affine codes, "l" place of the levels in `tables`, "n" shape of levels that
    are new, "s" 1 where levels have one scale that is not 1, "m" 1 where there is a mask.

    Raises:
        ValueError: a code or zero point does not fit in its bits, or there are more than 65,536 levels.

    >>> encode(Stored(torch.tensor([1.0, 2.0])).coded(torch.tensor([1, 2]), torch.tensor(1.0), bits=4), Tables())[0]
    {'b': 4}
    """
    if stored.codes is None:
        kind = DTYPES[stored.value.dtype]
        values = stored.value.numpy()
        return _shortest(stored, {} if kind == FLOAT else {"d": kind}, lambda mask: _encode_raw(values, kind, mask))
    if stored.levels is not None:
        return _encode_chosen(stored, tables)
    return _encode_uniform(stored)


def _encode_raw(values: NDArray[Any], kind: str, mask: NDArray[np.bool_] | None) -> bytes:
    entries = values if mask is None else values[mask]
    return encode_floats(entries) if kind == FLOAT else to_bytes(entries, kind)


def _shortest(stored: Stored, how: How, payload: Payload, *, needs_mask: bool = False) -> tuple[How, bytes]:
    """The values with their mask or, where nothing is lost, all of them without it."""
    if stored.mask is None:
        return how, payload(None)
    mask = stored.mask.numpy()
    masked = encode_mask(mask) + payload(mask)
    if needs_mask and not mask.all():
        return how | {"m": 1}, masked
    plain = payload(None)
    return (how | {"m": 1}, masked) if len(masked) < len(plain) else (how, plain)


def _encode_uniform(stored: Stored) -> tuple[How, bytes]:
    assert stored.codes is not None
    assert stored.scale is not None
    assert stored.zero_point is not None
    how: How = {"b": stored.bits} | ({} if stored.axis is None else {"x": stored.axis})
    scale, zero = stored.scale, stored.zero_point
    if stored.groups is not None:
        there = stored.groups > 0
        how["g"] = _named(stored.groups[there].tolist())
        scale, zero = scale[:, there], zero[:, there]
    alphabet, offset = _alphabet(stored.bits, stored.symmetric)
    head = encode_floats(scale.numpy())
    if not stored.symmetric:
        how["u"] = 1
        head += encode_symbols(zero.numpy(), alphabet)
    # Codes that the mask leaves out stand for zero.
    wide = _wide(stored.zero_point, stored.axis, stored.groups, stored.value.dim())
    codes = stored.codes if stored.mask is None else torch.where(stored.mask, stored.codes, wide)
    unsigned = codes.numpy().astype(np.int64) + offset
    signs = _signs(alphabet, zero.numpy() + offset)
    return _shortest(stored, how, lambda mask: head + _encode_codes(unsigned, mask, signs))


def _wide(values: Tensor, axis: int | None, groups: Tensor | None, dims: int) -> Tensor:
    return along(values, axis, dims) if groups is None else by_group(values, groups, dims)


def _encode_chosen(stored: Stored, tables: Tables) -> tuple[How, bytes]:
    assert stored.codes is not None
    assert stored.scale is not None
    assert stored.levels is not None
    levels, scale = stored.levels, stored.scale
    if not 1 <= len(levels) <= _MOST_LEVELS:
        raise ValueError(f"expected 1 to {_MOST_LEVELS} levels, got {len(levels)}")
    how: How = {"l": tables.index(levels)}
    head = b""
    if how["l"] == len(tables.found):
        how["n"] = list(levels.shape)
        head = encode_floats(levels.numpy())
        tables.found.append(levels)
    if stored.axis is not None:
        how["x"] = stored.axis
    elif scale != 1:
        how["s"] = 1
    head += encode_floats(scale.numpy()) if how.keys() & {"x", "s"} else b""
    codes, signs = stored.codes.numpy(), _directions(levels)
    if levels.dim() == 1:
        return _shortest(stored, how, lambda mask: head + _encode_codes(codes, mask, signs), needs_mask=True)
    body = head + _encode_codes(codes, None, signs)
    return _shortest(stored, how, lambda _: body, needs_mask=True)


def _directions(levels: Tensor) -> NDArray[np.int8]:
    """Which way each level points: its sign, or that of its first number."""
    return torch.sign(levels.reshape(len(levels), -1)[:, 0]).nan_to_num().to(torch.int8).numpy()


def _signs(alphabet: int, zeros: NDArray[np.integer]) -> NDArray[np.int8]:
    """Which way each code points from a zero point that they have in common, or else from the middle."""
    middle = int(zeros.flat[0]) if zeros.size and (zeros == zeros.flat[0]).all() else alphabet // 2
    return np.sign(np.arange(alphabet) - middle).astype(np.int8)


def _encode_codes(codes: NDArray[np.integer], mask: NDArray[np.bool_] | None, signs: NDArray[np.int8]) -> bytes:
    shape = matrix_shape(codes.shape)
    kept = np.ones(shape, np.bool_) if mask is None else mask.reshape(shape)
    return encode_codes(codes.reshape(shape), kept, signs)


def _named(sizes: list[int]) -> int | list[int]:
    """The size of groups that all have it but a last one that may be smaller, or the sizes."""
    return sizes[0] if sizes and set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0] else sizes


def _sizes(named: int | list[int], columns: int) -> Tensor:
    sizes = named
    if isinstance(named, int) and named > 0:
        sizes = [min(named, columns - start) for start in range(0, columns, named)]
    fits = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes) and sum(sizes) == columns
    if not fits:
        raise ValueError(f"groups of {str(named)[:40]} are declared for {columns} channels")
    return torch.tensor(sizes, dtype=torch.int64)


def decode(shape: list[int], how: How, reader: Reader, tables: Tables) -> Stored:
    """The tensor of this `shape` that comes next in `reader`: the inverse of `encode`.

    Raises:
        ValueError: the data is damaged, or not what `shape` and `how` say.

    >>> decode([2], {"b": 4}, Reader(to_bytes(np.ones(1), FLOAT) + bytes.fromhex("0098")), Tables()).value
    tensor([1., 2.])
    """
    _check(shape, how)
    mask = decode_mask(reader, shape) if "m" in how else None
    if "l" in how:
        stored = _decode_chosen(shape, how, reader, mask, tables)
    elif "b" in how:
        stored = _decode_uniform(shape, how, reader, mask)
    else:
        stored = _decode_raw(shape, how.get("d", FLOAT), reader, mask)
    return stored if mask is None else stored.masked(torch.from_numpy(mask))


def _check(shape: list[int], how: How) -> None:
    """Whether a header says of a tensor what a header can."""
    kinds = [keys for keys in (set("dm"), set("bxgum"), set("lnxsm")) if how.keys() <= keys]
    whole = all(type(how.get(key, 0)) is int for key in "blxsum")
    fits = (
        whole
        and 1 <= how.get("b", 1) <= _MOST_BITS
        and 0 <= how.get("x", 0) < max(1, len(shape))
        and not how.keys() >= {"x", "g"}
        and str(how.get("d", FLOAT)) in _TORCH_DTYPES
    )
    if not kinds or not fits or ("x" in how and not shape) or ("g" in how and len(shape) < 2):
        raise ValueError(f"a tensor of shape {str(shape)[:80]} is written as {str(how)[:80]}, which none is")


def _decode_raw(shape: list[int], kind: str, reader: Reader, mask: NDArray[np.bool_] | None) -> Stored:
    count = prod(shape) if mask is None else int(np.count_nonzero(mask))
    if kind == FLOAT:
        entries = torch.from_numpy(decode_floats(reader, count))
    else:
        dtype = np.dtype(kind)
        entries = torch.from_numpy(np.frombuffer(reader.take(count * dtype.itemsize), dtype).copy())
    return Stored(_spread(entries, torch.zeros((), dtype=_TORCH_DTYPES[kind]), shape, mask))


def _decode_uniform(shape: list[int], how: How, reader: Reader, mask: NDArray[np.bool_] | None) -> Stored:
    bits, axis, symmetric = how["b"], how.get("x"), "u" not in how
    groups = _sizes(how["g"], shape[1]) if "g" in how else None
    of_scale = [] if axis is None else [shape[axis]]
    if groups is not None:
        of_scale = [shape[0], len(groups)]
    alphabet, offset = _alphabet(bits, symmetric)
    scale = torch.from_numpy(decode_floats(reader, prod(of_scale))).reshape(of_scale)
    zero = torch.zeros(of_scale, dtype=torch.int32)
    if not symmetric:
        zero = torch.from_numpy(decode_symbols(reader, prod(of_scale), alphabet)).reshape(of_scale)
    entries = _decode_codes(reader, shape, mask, _signs(alphabet, zero.numpy() + offset)) - offset
    codes = _spread(entries, _wide(zero, axis, groups, len(shape)), shape, mask)
    return Stored(codes).coded(codes, scale, zero, bits=bits, axis=axis, symmetric=symmetric, groups=groups)


def _decode_chosen(
    shape: list[int], how: How, reader: Reader, mask: NDArray[np.bool_] | None, tables: Tables
) -> Stored:
    levels = _levels(how, reader, tables)
    axis = how.get("x")
    scale = None
    if "x" in how or "s" in how:
        of_scale = [] if axis is None else [shape[axis]]
        scale = torch.from_numpy(decode_floats(reader, prod(of_scale))).reshape(of_scale)
    of_codes = shape
    if levels.dim() == 2:
        rows, columns = matrix_shape(shape)
        if columns % levels.shape[1]:
            raise ValueError(f"blocks of {levels.shape[1]} are declared in rows of {columns}")
        of_codes, mask = [rows, columns // levels.shape[1]], None
    entries = _decode_codes(reader, of_codes, mask, _directions(levels))
    codes = _spread(entries, torch.zeros((), dtype=torch.int32), of_codes, mask)
    return Stored(torch.empty(shape)).chosen(codes, levels, scale, axis=axis)


def _levels(how: How, reader: Reader, tables: Tables) -> Tensor:
    """The levels that are next in the file, or those that it has had."""
    if "n" in how:
        size = how["n"]
        if how["l"] != len(tables.found) or not 1 <= size[0] <= _MOST_LEVELS or not 1 <= len(size) <= 2 or size[-1] < 1:
            raise ValueError(f"levels of shape {str(size)[:80]} are declared in place {how['l']}")
        tables.found.append(torch.from_numpy(decode_floats(reader, prod(size))).reshape(size))
    if not 0 <= how["l"] < len(tables.found):
        raise ValueError(f"levels are declared to be those in place {how['l']} of {len(tables.found)}")
    return tables.found[how["l"]]


def _decode_codes(reader: Reader, shape: list[int], mask: NDArray[np.bool_] | None, signs: NDArray[np.int8]) -> Tensor:
    """The codes that the mask keeps, 1-D."""
    matrix = matrix_shape(shape)
    kept = np.ones(matrix, np.bool_) if mask is None else mask.reshape(matrix)
    return torch.from_numpy(decode_codes(reader, kept, signs))


def _spread(entries: Tensor, rest: Tensor, shape: list[int], mask: NDArray[np.bool_] | None) -> Tensor:
    """The `entries` where the mask is set and `rest` elsewhere."""
    if mask is None:
        return entries.reshape(shape)
    value = rest.expand(shape).clone()
    value[torch.from_numpy(mask)] = entries
    return value
