"""The compressed file: what a finalized model takes on disk, and the way back to a model that computes the same.

Layout, little-endian: magic (4 bytes), version (1), CRC-32 of all that follows (4), length of the header (4), header
(JSON, deflated), data. The data is one stretch: the bytes of each tensor (section.py), in the order of the header,
then the scale (float32) of each activation quantizer. All that can be entropy coded is. Nothing in a file is ever run
or unpickled.
"""

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from lightning_compress.coding.reader import Reader
from lightning_compress.core import reused, surgery
from lightning_compress.core.edits import replay
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact, Edit
from lightning_compress.core.stored import Stored
from lightning_compress.export.quantizers import Quantizers
from lightning_compress.export.section import DTYPES, FLOAT, Tables, decode, encode, to_bytes

MAGIC = b"LCZ\x1a"
VERSION = 2
_PREFIX = struct.Struct("<4sBII")
_CHECKED_FROM = 9
#: Counts that batch norm keeps for training alone: not written, 0 after `rebuild`.
_DROPPED = "num_batches_tracked"
# Coded entries may take no bytes at all, so the length of a file does not bound what reading it takes, some 24 bytes
# of memory for each. Files with more than the first number and the second for each of their bytes are refused.
_MOST_ENTRIES, _MOST_ENTRIES_PER_BYTE = 2**22, 256
_MOST_HEADER = 2**21
_MOST_KEPT = 2**20
_MOST_DIMS = 8
# What a header that lies can lead to, before or while its tensors are made.
_UNSOUND = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, zlib.error)
# What headers are made of, so that even a short one deflates well. Part of the format: a change needs a new version.
_WORDS = (
    b'"name":"base_model":"in_channels":3,"num_classes":10,"image_size":32,"depth":20,"width":1.0}'
    b'{"_target_":"lightning_compress.models.lenet.LeNet5mlp.resnet_cifar.ResNetCIFARvgg_cifar.small_conv.SmallConv",'
    b'{"index":"side":"in""side":"out"{"kind":"keep","layer":"{"kind":"fold","norm":"layer1.0.bn1","into":"layer1.0.conv1"}'
    b'.running_mean",[.running_var",[.downsample.0.features.classifier.fc1.weight",[conv2.weight",[16,32,64,128,256,3,3],'
    b'{"b":8,"x":0,"g":32,"u":1,"m":1}],["fc.bias",[10]],["conv1.bias",[16]],["conv1.weight",[16,1,3,3],'
    b'{"l":1,"n":[16],"x":0,"m":1}],["fc1.weight",[300,784],{"l":0,"n":[32],"m":1}],["fc1.bias",[300]],["fc2.weight",'
    b'{"b":4,"x":0}],"q":[["conv1",0,255,0],["fc",0,15,0]],"input_shape":[1,28,28],"t":[["e":[],"a":{"model":'
)


@final
@dataclass(frozen=True)
class Packed:
    """What a compressed file holds.

    `architecture` is the JSON data given to `write`; `quantizers` go by the layer whose input they round, `outputs` by
    the module whose output they round.
    `header_bytes` plus the sum of `bytes_per_tensor` is the length of the file.
    """

    architecture: dict[str, Any] | None
    edits: list[Edit]
    tensors: dict[str, Stored]
    quantizers: dict[str, FixedQuantizer]
    bytes_per_tensor: dict[str, int]
    header_bytes: int
    outputs: dict[str, FixedQuantizer] = field(default_factory=dict)


def _is_written(name: str) -> bool:
    *parents, leaf = name.split(".")
    return leaf != _DROPPED and not {surgery.INPUT_CHILD, surgery.OUTPUT_CHILD} & set(parents)


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


def _shorten(edit: Edit) -> Edit:
    """An edit with its kept indices as one hexadecimal number with those bits set, where they are in order."""
    index = edit.get("index")
    if not index or index != sorted(set(index)):
        return edit
    return edit | {"index": f"{sum(1 << i for i in index):x}"}


def _lengthen(edit: Edit) -> Edit:
    index = edit.get("index", [])
    if isinstance(index, str):
        bits = f"{int(index, 16):b}"
        return edit | {"index": [i for i, bit in enumerate(reversed(bits)) if bit == "1"]}
    if not isinstance(index, list) or not _all_whole(index) or len(set(index)) < len(index):
        raise ValueError(f"an edit keeps the channels {str(index)[:80]}")
    return edit


def write(compact: Compact, path: str | Path, *, architecture: dict[str, Any] | None = None) -> int:
    """Write a finalized model to a compressed file; returns its length in bytes.

    `architecture` is JSON data from which `rebuild` can make the base model. A mask is written where that is
    shorter than the zeros it stands for.

    Raises:
        ValueError: `stored` does not describe the tensors of the model, or holds what the format cannot.

    >>> import tempfile
    >>> _ = torch.manual_seed(0)  # other weights may share bytes, which takes fewer
    >>> net = nn.Linear(2, 3).eval()
    >>> stored = {name: Stored(value.detach()) for name, value in net.named_parameters()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = write(Compact(net, stored), Path(folder) / "model.lcz")
    ...     back = read(Path(folder) / "model.lcz")
    >>> back.bytes_per_tensor, size - back.header_bytes
    ({'weight': 25, 'bias': 13}, 38)
    """
    tensors, data, tables = [], b"", Tables()
    for name, stored in _checked(compact).items():
        how, body = encode(stored, tables)
        tensors.append([name, list(stored.value.shape), *([how] if how else [])])
        data += body
    quantizers = Quantizers.of(compact.model).rows()
    data += b"".join(to_bytes(scale, FLOAT) for _, scale in quantizers)
    edits = [_shorten(edit) for edit in compact.edits]
    header = {"a": architecture, "e": edits, "t": tensors, "q": [row for row, _ in quantizers]}
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_WORDS)
    text = json.dumps(header, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    if len(text) > _MOST_HEADER:
        raise ValueError(f"the header takes {len(text)} bytes, at most {_MOST_HEADER} can be written")
    short = deflate.compress(text) + deflate.flush()
    rest = struct.pack("<I", len(short)) + short + data
    file = MAGIC + struct.pack("<BI", VERSION, zlib.crc32(rest)) + rest
    _declared(text, len(file))  # what would not be read is not written
    return Path(path).write_bytes(file)


def _unwrap(file: bytes) -> tuple[bytes, int]:
    """The text of the header of a file whose checksum is right, and where the data begins."""
    if len(file) < _PREFIX.size or not file.startswith(MAGIC):
        raise ValueError(f"it does not begin with {MAGIC!r}")
    _, version, checksum, length = _PREFIX.unpack_from(file)
    if version != VERSION:
        raise ValueError(f"expected version {VERSION}, got {version}: write the model again with this release")
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
    header = json.loads(text)
    if not isinstance(header, dict) or header.keys() != set("aetq"):
        raise ValueError(f"its header says {str(header)[:80]}")
    entries = 0
    for name, shape, *how in header["t"]:
        new = how[0].get("n", []) if how else []
        whole = isinstance(new, list) and _all_whole([*shape, *new]) and len(shape) <= _MOST_DIMS
        if not isinstance(name, str) or not whole:
            raise ValueError(f"a tensor is called {str(name)[:80]!r} and has shape {str(shape)[:80]}")
        # A tensor without entries may have scales.
        entries += prod(max(1, length) for length in shape) + prod(new)
    entries += sum(reused.entries(edit) for edit in header["e"] if edit.get("kind") == reused.KIND)
    most = _MOST_ENTRIES + _MOST_ENTRIES_PER_BYTE * file_size
    if entries > most:
        raise ValueError(f"{entries} tensor entries declared in {file_size} bytes, where at most {most} are read")
    kept = sum(4 * len(edit["index"]) for edit in header["e"] if isinstance(edit.get("index"), str))
    if kept > _MOST_KEPT + 8 * file_size:
        raise ValueError(f"edits of {kept} channels declared in {file_size} bytes")
    return header


def _all_whole(numbers: list[Any]) -> bool:
    return all(type(number) is int and 0 <= number < 2**62 for number in numbers)


def _parse(file: bytes) -> Packed:
    text, start = _unwrap(file)
    header = _declared(text, len(file))
    reader, tables = Reader(file[start:]), Tables()
    tensors: dict[str, Stored] = {}
    sizes: dict[str, int] = {}
    for name, shape, *how in header["t"]:
        before = reader.at
        tensors[name] = decode(shape, how[0] if how else {}, reader, tables)
        sizes[name] = reader.at - before
    quantizers = Quantizers()
    for row in header["q"]:
        sizes[quantizers.add(row, reader.take(4))] = 4
    if reader.left:
        raise ValueError(f"{reader.left} bytes follow the last tensor")
    if len(sizes) != len(header["t"]) + len(header["q"]):
        raise ValueError("a name is used twice")
    edits = [_lengthen(edit) for edit in header["e"]]
    return Packed(header["a"], edits, tensors, quantizers.inputs, sizes, start, quantizers.outputs)


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
    try:
        model = replay(surgery.plain(base_model), packed.edits).requires_grad_(False)
    except _UNSOUND as error:
        raise ValueError(f"the edits in the file do not fit the base architecture: {error}") from error
    own = {name: getattr(*at) for name, at in surgery.own_names(model).items()}
    _check_fit(packed, own, model)
    for name, tensor in own.items():
        if name in packed.tensors:
            tensor.copy_(packed.tensors[name].value)
        else:
            tensor.zero_()
    Quantizers(packed.quantizers, packed.outputs).put_on(model)
    return model.eval()


def _check_fit(packed: Packed, own: dict[str, torch.Tensor], model: nn.Module) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in own.items() if _is_written(name)}
    got = {name: tuple(stored.value.shape) for name, stored in packed.tensors.items()}
    odd = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if odd:
        first = odd[0]
        shapes = f"{first!r} has shape {expected.get(first)}, in the file {got.get(first)} ({len(odd)} such tensors)"
        raise ValueError(f"the base architecture is not that of the file: {shapes}")
    unknown = (packed.quantizers.keys() | packed.outputs.keys()) - dict(model.named_modules()).keys()
    if unknown:
        raise ValueError(f"the file has a quantizer for {min(unknown)!r}, a layer that the base architecture lacks")
