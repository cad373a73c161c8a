"""One tensor as the bytes of a compressed file, and back.

The bytes of a tensor are those of its mask, its values (raw, or codes of n bits; only those that the mask keeps),
its scales (float32) and its zero points (n bits).
"""

from math import prod
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.coding.bits import pack, packed_size, unpack
from lightning_compress.coding.sparse import decode_mask, encode_mask
from lightning_compress.core.stored import Stored, along

FLOAT = "<f4"
DTYPES = {torch.float32: FLOAT, torch.int64: "<i8", torch.int32: "<i4", torch.uint8: "|u1", torch.bool: "|b1"}
_TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def to_bytes(array: NDArray[Any] | Tensor, dtype: str) -> bytes:
    """The entries of `array` in C order, as `dtype`.

    >>> to_bytes(np.array([1, 2]), "<i4").hex()
    '0100000002000000'
    """
    return np.asarray(array).astype(dtype).tobytes()


def _offset(bits: int, symmetric: bool) -> int:
    """What makes a code unsigned."""
    return 2 ** (bits - 1) - 1 if symmetric else 0


def encode(stored: Stored) -> tuple[dict[str, Any], bytes]:
    """How a tensor is written, as a header says it, and its bytes; a mask is written only where that is shorter.

    Keys: "d" dtype if not float32, "b" bits of a code, "x" axis of the scales, "u" 1 for affine codes, "m" scheme
    and length of the mask.

    Raises:
        ValueError: a code or zero point does not fit in its bits.

    >>> encode(Stored(torch.tensor([1.0, 2.0])).coded(torch.tensor([1, 2]), torch.tensor(1.0), bits=4))[0]
    {'b': 4}
    """
    how: dict[str, Any] = {}
    tail = b""
    if stored.codes is None:
        kind = DTYPES[stored.value.dtype]
        how |= {} if kind == FLOAT else {"d": kind}
        values = stored.value.numpy()
    else:
        assert stored.scale is not None
        assert stored.zero_point is not None
        how |= {"b": stored.bits} | ({} if stored.axis is None else {"x": stored.axis})
        zero = along(stored.zero_point, stored.axis, stored.codes.dim())
        codes = stored.codes if stored.mask is None else torch.where(stored.mask, stored.codes, zero)
        values = codes.numpy() + _offset(stored.bits, stored.symmetric)
        tail = to_bytes(stored.scale, FLOAT)
        if not stored.symmetric:
            how["u"] = 1
            tail += pack(stored.zero_point.numpy(), stored.bits)

    def payload(entries: NDArray[Any]) -> bytes:
        return to_bytes(entries, kind) if stored.codes is None else pack(entries, stored.bits)

    body = payload(values)
    if stored.mask is not None:
        mask = stored.mask.numpy()
        scheme, data = encode_mask(mask)
        kept = data + payload(values[mask])
        if len(kept) < len(body):
            how["m"] = [scheme, len(data)]
            body = kept
    return how, body + tail


@final
class Data:
    """The data section, taken piece by piece; sizes are checked before anything is made of them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if not 0 <= size <= len(self.data) - self.at:
            raise ValueError(f"{size} bytes declared where {len(self.data) - self.at} are left")
        self.at += size
        return self.data[self.at - size : self.at]

    def array(self, count: int, dtype: str) -> Tensor:
        """The next `count` numbers of a numpy `dtype`, 1-D."""
        data = self.take(count * np.dtype(dtype).itemsize)
        return torch.from_numpy(np.frombuffer(data, dtype).copy())

    def codes(self, count: int, bits: int) -> Tensor:
        """The next `count` unsigned codes, 1-D, int32."""
        return torch.from_numpy(unpack(self.take(packed_size(count, bits)), count, bits).astype(np.int32))


def decode(shape: list[int], how: dict[str, Any], data: Data) -> Stored:
    """The tensor of this `shape` that comes next in `data`: the inverse of `encode`.

    Raises:
        ValueError: `data` is too short for what `shape` and `how` say.

    >>> decode([2], {"b": 4}, Data(bytes.fromhex("98") + to_bytes(np.ones(1), FLOAT))).value
    tensor([1., 2.])
    """
    mask = None
    if "m" in how:
        scheme, length = how["m"]
        mask = torch.from_numpy(decode_mask(scheme, data.take(length), shape))
    count = prod(shape) if mask is None else int(mask.sum())
    if "b" not in how:
        dtype = how.get("d", FLOAT)
        rest = torch.zeros((), dtype=_TORCH_DTYPES[dtype])
        return _spread(data.array(count, dtype), rest, shape, mask)
    bits, axis, symmetric = how["b"], how.get("x"), "u" not in how
    entries = data.codes(count, bits) - _offset(bits, symmetric)
    channels = 1 if axis is None else shape[axis]
    scale = data.array(channels, FLOAT)
    zero = torch.zeros(channels, dtype=torch.int32) if symmetric else data.codes(channels, bits)
    if axis is None:
        scale, zero = scale[0], zero[0]
    # Codes that the mask leaves out stand for zero.
    codes = _spread(entries, along(zero, axis, len(shape)), shape, mask)
    plain = Stored(codes.value).coded(codes.value, scale, zero, bits=bits, axis=axis, symmetric=symmetric)
    return plain if mask is None else plain.masked(mask)


def _spread(entries: Tensor, rest: Tensor, shape: list[int], mask: Tensor | None) -> Stored:
    """The `entries` where the mask is set and `rest` elsewhere."""
    if mask is None:
        return Stored(entries.reshape(shape))
    value = rest.expand(shape).clone()
    value[mask] = entries
    return Stored(value, mask=mask)
