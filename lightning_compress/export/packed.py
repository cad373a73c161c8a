"""The compressed file: what a finalized model takes on disk, and the way back to a model that computes the same.

Layout, little-endian: magic (4 bytes), version (1), CRC-32 of all that follows (4), length of the header (4), header
(JSON, deflated), data. The data is one stretch: the bytes of each tensor (section.py), in the order of the header,
then the scale (float32) of each activation quantizer. Nothing in a file is ever run or unpickled.
"""

import copy
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from lightning_compress.core import surgery
from lightning_compress.core.edits import replay
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact, Edit
from lightning_compress.core.stored import Stored
from lightning_compress.export.section import DTYPES, FLOAT, Data, decode, encode, to_bytes

MAGIC = b"LCZ\x1a"
VERSION = 1
_PREFIX = struct.Struct("<4sBII")
_CHECKED_FROM = 9
#: Counts that batch norm keeps for training alone: not written, 0 after `rebuild`.
_DROPPED = "num_batches_tracked"
# A mask can stand for far more entries than it has bytes, so the length of a file does not bound what reading takes.
# Files beyond both of these are refused: more entries in all, and more for each byte of the file.
_MOST_ENTRIES = 2**24
_MOST_ENTRIES_PER_BYTE = 1024
_MOST_HEADER = 2**23
# What a header that lies can lead to, before or while its tensors are made.
_UNSOUND = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, zlib.error)
# What headers are made of, so that even a short one deflates well. Part of the format: a change needs a new version.
_WORDS = (
    b'"name":"base_model":"in_channels":3,"num_classes":10,"image_size":32,"depth":20,"width":1.0}'
    b'{"_target_":"lightning_compress.models.lenet.LeNet5mlp.resnet_cifar.ResNetCIFARvgg_cifar.small_conv.SmallConv",'
    b'{"index":"side":"in""side":"out"{"kind":"keep","layer":"{"kind":"fold","norm":"layer1.0.bn1","into":"layer1.0.conv1"}'
    b'.running_mean",[.running_var",[.downsample.0.features.classifier.fc1.weight",[conv2.weight",[16,32,64,128,256,3,3],'
    b'{"b":8,"x":0,"m":["relative:3:["rows+bitmap",["fc.bias",[10]],["conv1.bias",[16]],["conv1.weight",[16,1,3,3],'
    b'{"b":4,"x":0}],"q":[["conv1",0,255,0],["fc",0,15,0]],"e":[{"a":null,"t":[['
)


@final
@dataclass(frozen=True)
class Packed:
    """What a compressed file holds.

    `architecture` is the JSON data given to `write`; `quantizers` go by the layer whose input they round.
    `header_bytes` plus the sum of `bytes_per_tensor` is the length of the file.
    """

    architecture: dict[str, Any] | None
    edits: list[Edit]
    tensors: dict[str, Stored]
    quantizers: dict[str, FixedQuantizer]
    bytes_per_tensor: dict[str, int]
    header_bytes: int


def _is_written(name: str) -> bool:
    *parents, leaf = name.split(".")
    return leaf != _DROPPED and surgery.INPUT_CHILD not in parents


def _checked(compact: Compact) -> dict[str, Stored]:
    """The tensors to write, once they are known to be those of the model."""
    own = {name: getattr(*at) for name, at in surgery.own_names(compact.model).items() if _is_written(name)}
    stored = {name: tensor for name, tensor in compact.stored.items() if _is_written(name)}
    if own.keys() != stored.keys():
        odd = sorted(own.keys() ^ stored.keys())
        raise ValueError(f"the tensors of the model and of `stored` differ in {', '.join(odd[:6])}")
    for name, tensor in stored.items():
        if tensor.value.dtype not in DTYPES:
            raise ValueError(f"cannot pack {name!r}: expected float32 or an integer type, got {tensor.value.dtype}")
        if not torch.equal(tensor.dequantize(), own[name]):
            raise ValueError(f"what is stored of {name!r} is not what the model computes with")
    return stored


def _quantizers(model: nn.Module) -> dict[str, FixedQuantizer]:
    found = {}
    for name, module in model.named_modules():
        layer, _, leaf = name.rpartition(".")
        if isinstance(module, FixedQuantizer):
            if leaf != surgery.INPUT_CHILD:
                raise ValueError(f"cannot pack {name!r}: a FixedQuantizer must be a layer's {surgery.INPUT_CHILD}")
            found[layer] = module
    return found


def _shorten(edit: Edit) -> Edit:
    """An edit with its kept indices as one hexadecimal number with those bits set, where they are in order."""
    index = edit.get("index")
    if not index or index != sorted(set(index)):
        return edit
    return edit | {"index": f"{sum(1 << i for i in index):x}"}


def _lengthen(edit: Edit) -> Edit:
    index = edit.get("index")
    if not isinstance(index, str):
        return edit
    bits = f"{int(index, 16):b}"
    return edit | {"index": [i for i, bit in enumerate(reversed(bits)) if bit == "1"]}


def write(compact: Compact, path: str | Path, *, architecture: dict[str, Any] | None = None) -> int:
    """Write a finalized model to a compressed file; returns its length in bytes.

    `architecture` is JSON data from which `rebuild` can make the base model. A mask is written where that is
    shorter than the zeros it stands for.

    Raises:
        ValueError: `stored` does not describe the tensors of the model, or holds what the format cannot.

    >>> import tempfile
    >>> net = nn.Linear(2, 3).eval()
    >>> stored = {name: Stored(value.detach()) for name, value in net.named_parameters()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = write(Compact(net, stored), Path(folder) / "model.lcz")
    ...     back = read(Path(folder) / "model.lcz")
    >>> back.bytes_per_tensor, size - back.header_bytes
    ({'weight': 24, 'bias': 12}, 36)
    """
    tensors, data = [], b""
    for name, stored in _checked(compact).items():
        how, body = encode(stored)
        tensors.append([name, list(stored.value.shape), *([how] if how else [])])
        data += body
    quantizers = []
    for layer, fixed in _quantizers(compact.model).items():
        quantizers.append([layer, fixed.low, fixed.high, int(fixed.zero_point)])
        data += to_bytes(fixed.scale, FLOAT)
    edits = [_shorten(edit) for edit in compact.edits]
    header = {"a": architecture, "e": edits, "t": tensors, "q": quantizers}
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_WORDS)
    text = json.dumps(header, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    if len(text) > _MOST_HEADER:
        raise ValueError(f"the header takes {len(text)} bytes, at most {_MOST_HEADER} can be written")
    short = deflate.compress(text) + deflate.flush()
    rest = struct.pack("<I", len(short)) + short + data
    file = MAGIC + struct.pack("<BI", VERSION, zlib.crc32(rest)) + rest
    return Path(path).write_bytes(file)


def _unwrap(file: bytes) -> tuple[bytes, int]:
    """The text of the header of a file whose checksum is right, and where the data begins."""
    if len(file) < _PREFIX.size or not file.startswith(MAGIC):
        raise ValueError(f"it does not begin with {MAGIC!r}")
    _, version, checksum, length = _PREFIX.unpack_from(file)
    if version != VERSION:
        raise ValueError(f"expected version {VERSION}, got {version}")
    if zlib.crc32(file[_CHECKED_FROM:]) != checksum:
        raise ValueError("its checksum is wrong: it was cut off or changed")
    if length > len(file) - _PREFIX.size:
        raise ValueError(f"a header of {length} bytes does not fit in {len(file)}")
    start = _PREFIX.size + length
    inflate = zlib.decompressobj(-15, zdict=_WORDS)
    text = inflate.decompress(file[_PREFIX.size : start], _MOST_HEADER)
    if not inflate.eof or inflate.unused_data:
        raise ValueError("its header does not inflate")
    return text, start


def _declared(text: bytes, file_size: int) -> dict[str, Any]:
    """The header, once the number of entries that it declares is one that a file of this size can hold."""
    header: dict[str, Any] = json.loads(text)
    entries = 0
    for name, shape, *_ in header["t"]:
        if not isinstance(name, str) or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"a tensor is called {name!r} and has shape {shape!r}")
        entries += prod(shape)
    if entries > max(_MOST_ENTRIES, _MOST_ENTRIES_PER_BYTE * file_size):
        raise ValueError(f"{entries} tensor entries declared in {file_size} bytes")
    return header


def _parse(file: bytes) -> Packed:
    text, start = _unwrap(file)
    header = _declared(text, len(file))
    data = Data(file[start:])
    tensors: dict[str, Stored] = {}
    sizes: dict[str, int] = {}
    for name, shape, *how in header["t"]:
        before = data.at
        tensors[name] = decode(shape, how[0] if how else {}, data)
        sizes[name] = data.at - before
    quantizers = {}
    for layer, low, high, zero in header["q"]:
        quantizers[layer] = FixedQuantizer(data.array(1, FLOAT)[0], torch.tensor(zero), low, high)
        sizes[f"{layer}.{surgery.INPUT_CHILD}.scale"] = 4
    if data.at != len(data.data):
        raise ValueError(f"{len(data.data) - data.at} bytes follow the last tensor")
    if len(sizes) != len(header["t"]) + len(header["q"]):
        raise ValueError("a name is used twice")
    edits = [_lengthen(edit) for edit in header["e"]]
    return Packed(header["a"], edits, tensors, quantizers, sizes, start)


def read(path: str | Path) -> Packed:
    """Read a compressed file that `write` wrote.

    Raises:
        ValueError: it is not such a file, of another version, or damaged.
    """
    file = Path(path).read_bytes()
    try:
        return _parse(file)
    except _UNSOUND as error:
        raise ValueError(f"{path} is not a sound compressed model: {error}") from error


@torch.no_grad()
def rebuild(
    packed: Packed,
    base_model: nn.Module | None = None,
    build: Callable[[dict[str, Any]], nn.Module] | None = None,
) -> nn.Module:
    """The model of a compressed file, in eval mode: its outputs are bit for bit those of the model written.

    The base architecture is `base_model`, which stays as it is, or what `build` makes of `packed.architecture`.

    Raises:
        ValueError: there is no base architecture, or its tensors are not those of the file.

    >>> net = rebuild(Packed(None, [], {"weight": Stored(torch.ones(1, 2))}, {}, {}, 0), nn.Linear(2, 1, bias=False))
    >>> net(torch.ones(1, 2))
    tensor([[2.]])
    """
    if base_model is None:
        if build is None or packed.architecture is None:
            raise ValueError("pass base_model, or build for a file that was written with an architecture")
        base_model = build(packed.architecture)
    model = replay(surgery.plain(base_model), packed.edits).requires_grad_(False)
    own = {name: getattr(*at) for name, at in surgery.own_names(model).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items() if _is_written(name)}
    got = {name: tuple(stored.value.shape) for name, stored in packed.tensors.items()}
    odd = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if odd:
        first = odd[0]
        raise ValueError(
            f"the base architecture is not that of the file: {first!r} has shape {expected.get(first)}, "
            f"in the file {got.get(first)} ({len(odd)} such tensors)"
        )
    for name, tensor in own.items():
        if name in packed.tensors:
            tensor.copy_(packed.tensors[name].value)
        else:
            tensor.zero_()
    for layer, fixed in packed.quantizers.items():
        surgery.put_on_input(model.get_submodule(layer), copy.deepcopy(fixed))
    return model.eval()
