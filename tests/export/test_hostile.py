"""Files that are damaged or made to do harm: each is refused by name, runs nothing and takes little memory."""

import copy
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import packed
from lightning_compress.export.packed import read, rebuild, write

Header = dict[str, Any]
NAMES = ("raw", "sparse", "affine", "groups", "levels", "again", "blocks")
_START = packed._PREFIX.size


def base() -> nn.Module:
    net = nn.ModuleDict({name: nn.Linear(24, 16, bias=False) for name in NAMES})
    net.register_buffer("steps", torch.tensor([3, 4]))
    return net.eval()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with a tensor of every kind, an edit and a quantizer."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 24, generator=draw)
    mask = torch.rand(16, 24, generator=draw) < 0.3
    codes = torch.randint(0, 8, (16, 24), generator=draw)
    values = torch.randn(8, generator=draw)
    stored = {
        "raw": Stored(weight),
        "sparse": Stored(weight).masked(mask),
        "affine": Stored(weight).coded(codes, torch.rand(16) + 0.1, codes[:, 0], bits=3, axis=0, symmetric=False),
        "groups": Stored(weight).coded(codes - 3, torch.rand(16, 3) + 0.1, bits=4, groups=torch.tensor([8, 8, 8])),
        "levels": Stored(weight).chosen(codes, values).masked(mask),
        "again": Stored(weight).chosen(codes.flip(0), values, torch.rand(16), axis=0),
        "blocks": Stored(weight).chosen(codes[:, :6], torch.randn(8, 4, generator=draw), torch.tensor(0.3)),
    }
    net = base()
    for name, entry in stored.items():
        net.get_parameter(f"{name}.weight").data.copy_(entry.value)
    fixed = FixedQuantizer(torch.tensor(0.5), torch.tensor(1), 0, 15)
    surgery.put_on_input(net.get_submodule("raw"), fixed)
    keep = edits.keep("raw", "out", torch.arange(16))
    whole = {f"{name}.weight": entry for name, entry in stored.items()} | {"steps": Stored(torch.tensor([3, 4]))}
    path = tmp_path_factory.mktemp("sound") / "model.lcz"
    write(Compact(net, whole, [keep]), path, architecture={"name": "net"})
    return path.read_bytes()


def opened(file: bytes) -> tuple[Header, bytes]:
    text, start = packed._unwrap(file)
    return json.loads(text), file[start:]


def sealed(text: bytes, data: bytes) -> bytes:
    """A file whose checksum is right, whatever it says."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=packed._WORDS)
    short = deflate.compress(text) + deflate.flush()
    rest = struct.pack("<I", len(short)) + short + data
    return packed.MAGIC + struct.pack("<BI", packed.VERSION, zlib.crc32(rest)) + rest


def with_edit(file: bytes, edit: dict[str, Any]) -> bytes:
    header, data = opened(file)
    return sealed(json.dumps(header | {"e": [edit]}).encode(), data)


def how_of(header: Header, name: str) -> dict[str, Any]:
    row = next(row for row in header["t"] if row[0] == f"{name}.weight")
    if len(row) == 2:
        row.append({})
    return row[2]  # type: ignore[no-any-return]


def flipped(file: bytes, place: int, bit: int = 0) -> bytes:
    damaged = bytearray(file)
    damaged[place] ^= 1 << bit
    return bytes(damaged)


def damages(file: bytes) -> Iterator[tuple[str, bytes]]:
    """Damage that the checksum or what stands before it gives away."""
    for share in range(12):
        place = share * (len(file) - 1) // 11
        yield f"bit {share % 8} of byte {place}", flipped(file, place, share % 8)
    for length in (0, 1, 4, 5, 12, 13, 14, len(file) // 3, len(file) // 2, len(file) - 4, len(file) - 1):
        yield f"cut to {length}", file[:length]
    for version in (0, 1, 3, 255):
        yield f"version {version}", file[:4] + bytes([version]) + file[5:]
    yield "one byte more", file + b"\0"
    yield "twice", file + file
    yield "zeros", bytes(len(file))
    yield "another magic", b"PK\3\4" + file[4:]
    yield "a stretch swapped", file[:40] + file[60:80] + file[40:60] + file[80:]


HUGE = 2**62
#: What a header may say of a tensor and must not: tensor, key, values.
WRONG_HOWS: list[tuple[str, str, list[Any]]] = [
    ("affine", "b", [0, 17, -1, HUGE, 3.0, "3", None]),
    ("affine", "x", [2, -1, HUGE, [0], True, 0.0]),
    ("affine", "u", [[1], None]),
    ("affine", "g", [8]),
    ("affine", "l", [0]),
    ("affine", "d", ["<i8"]),
    ("affine", "z", [1]),
    # Groups of another number that fit may well be read: the coder goes on with zeros where its data ends.
    ("groups", "g", [0, -8, HUGE, [8, 8], [8, 16, 0], [24.0], [], [30, -6], "8", {"8": 1}, None]),
    ("levels", "n", [[0], [], [8, 1, 1], [2**30], [HUGE, HUGE], [-8], [8.0], [2**16 + 1], [8, 0], "8", 8, [[8]]]),
    ("again", "l", [-1, 1, 2, HUGE, "0", None, [0]]),
    ("blocks", "n", [[8, 5], [8, 48], [2, 2**21]]),
    ("blocks", "l", [0, 2, -1]),
    ("raw", "d", ["O", "<f8", "|S1000000", "V8", 3, ["<i4"]]),
]
WRONG_ROWS: list[tuple[int, list[Any]]] = [
    (0, [3, None, ["w"], {"a": 1}, "again.weight"]),
    (
        1,
        [[2**24, 24], [2**40, 0], [HUGE, HUGE], [-16, -24], [16.0, 24], ["16", 24], [True, 24], None, "ab", [24] * 999],
    ),
]
WRONG_PARTS: list[tuple[str, list[Any]]] = [
    ("t", [3, None, {}, [[]], [["w"]], [3], [["w", [1, 1], {"m": 1}]] * 10**5, [["w", [4], 3]]]),
    ("q", [3, [["raw"]], [["raw", 0, 15, HUGE]], [["raw", 5, 1, 3]], [["raw", 0, 1.5, 1]], [[3, 0, 15, 1]]]),
    ("q", [[["raw", 0, 15, 99]], [["raw", 0, 15, 1]] * 2, []]),
    ("e", [[3], [None], "x", [{"index": "xyz"}], [{"index": [0, 0]}], [{"index": [-1]}], [{"index": [0.5]}]]),
    ("e", [[{"index": {"0": 1}}], [{"index": "f" * 2**19}] * 3]),
    ("e", [[{"kind": "reuse", "layer": "raw", "widths": [24, width], "shape": [16, width]}] for width in (2**20, "8")]),
    ("z", [1]),
]


def lies(file: bytes) -> Iterator[tuple[str, bytes]]:
    """Headers that lie under a right checksum."""
    for number, values in WRONG_ROWS:
        for value in values:
            header, data = opened(file)
            header["t"][0][number] = value
            yield f"row {number}: {str(value)[:40]}", sealed(json.dumps(header).encode(), data)
    for name, key, values in WRONG_HOWS:
        for value in values:
            header, data = opened(file)
            how_of(header, name)[key] = value
            yield f"{name} {key}: {str(value)[:40]}", sealed(json.dumps(header).encode(), data)
    for part, values in WRONG_PARTS:
        for value in values:
            header, data = opened(file)
            header[part] = value
            yield f"{part}: {str(value)[:40]}", sealed(json.dumps(header).encode(), data)
    for part in "aetq":
        header, data = opened(file)
        del header[part]
        yield f"no {part}", sealed(json.dumps(header).encode(), data)


def texts(file: bytes) -> Iterator[tuple[str, bytes]]:
    """Headers that are none, and data that is not what it should be."""
    _, data = opened(file)
    for name, text in {
        "a list": b"[1, 2]", "no JSON": b"{{{", "no text": b"\xff\xfe\x00", "nested": b"[" * 10**6, "empty": b"",
        "bomb": b" " * 2**25, "bomb of lists": b"[" + b"[]," * 10**6 + b"[]]", "a long number": b"9" * 10**5,
        "not a number": b'{"a":null,"e":[],"t":[["w",[NaN]]],"q":[]}',
        "pickle": pickle.dumps({"t": []}),
    }.items():  # fmt: skip
        yield name, sealed(text, data)
    header = json.dumps({"a": None, "e": [], "t": [["w", [2**10, 2**10], {"m": 1, "b": 8}]], "q": []}).encode()
    for name, stream in {
        "no mask": b"", "gaps": b"\x3a\xff\xff\xff\xff\xff\xff\xff\x7f",
        "a mask of 2^50 bytes": b"\x03\x02" + b"\x80" * 6 + b"\x08",
        "a lag of 2^40": b"\x03" + b"\x80" * 5 + b"\x20\x00", "a number without end": b"\x03" + b"\xff" * 60,
        "codes of 2^40 bytes": b"\x00" + bytes(4) + b"\x82" + b"\x80" * 5 + b"\x01",
    }.items():  # fmt: skip
        yield name, sealed(header, stream)
    text = packed._unwrap(file)[0]
    yield "a scale that is not a number", sealed(text, data[:-4] + struct.pack("<f", float("nan")))
    yield "a negative scale", sealed(text, data[:-4] + struct.pack("<f", -1.0))
    yield "a byte too many", sealed(text, data + b"\0")
    yield "a byte too few", sealed(text, data[1:])
    yield "header beyond the end", _resealed(file[: _START - 4] + struct.pack("<I", 2**31) + file[_START:])
    yield "header of no length", _resealed(file[: _START - 4] + struct.pack("<I", 0) + file[_START:])
    yield "header cut short", _resealed(file[: _START - 4] + struct.pack("<I", 20) + file[_START:])


def _resealed(file: bytes) -> bytes:
    return file[:5] + struct.pack("<I", zlib.crc32(file[9:])) + file[9:]


def all_cases(file: bytes) -> dict[str, bytes]:
    return {name: case for group in (damages, lies, texts) for name, case in group(file)}


def test_the_file_is_sound_and_so_is_what_is_sealed_again(sound: bytes, tmp_path: Path) -> None:
    header, data = opened(sound)
    (tmp_path / "model.lcz").write_bytes(sealed(json.dumps(header).encode(), data))
    back = read(tmp_path / "model.lcz")
    net = rebuild(back, base())
    assert torch.equal(net.get_parameter("blocks.weight"), back.tensors["blocks.weight"].value)


def test_every_corrupted_file_is_refused_with_what_is_wrong(sound: bytes, tmp_path: Path) -> None:
    cases = all_cases(sound)
    assert len(cases) > 150
    path, wrong = tmp_path / "model.lcz", []
    for name, case in cases.items():
        path.write_bytes(case)
        try:
            read(path)
        except ValueError as error:
            reason = str(error).removeprefix(f"{path} is not a sound compressed model: ")
            if reason == str(error) or not 8 < len(reason) < 300:
                wrong.append(f"{name}: {error}")
        else:
            wrong.append(f"{name}: read")
    assert not wrong


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_no_corrupted_file_takes_much_memory(sound: bytes, tmp_path: Path) -> None:
    for number, case in enumerate(all_cases(sound).values()):
        (tmp_path / f"{number:03}.lcz").write_bytes(case)
    command: list[str | Path] = [
        sys.executable,
        Path(__file__).with_name("limited.py"),
        packed.__name__,
        "read",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert set(found["outcomes"].values()) == {"ValueError"}
    assert found["grown"] < 200 * 2**20


@pytest.mark.parametrize("seed", range(8))
def test_flips_under_a_right_checksum_are_read_or_refused(seed: int, sound: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    start, path, outcomes = packed._unwrap(sound)[1], tmp_path / "model.lcz", []
    for _ in range(40):
        damaged = bytearray(sound)
        for place in rng.integers(start if seed % 2 else _START, len(sound), rng.integers(1, 4)):
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(_resealed(bytes(damaged)))
        try:
            back = read(path)
        except ValueError:
            outcomes.append("refused")
        else:
            assert all(stored.value.numel() < 10**6 for stored in back.tensors.values())
            outcomes.append("read")
    assert "refused" in outcomes


class Touch:
    """What unpickling turns into an empty file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(sound: bytes, tmp_path: Path) -> None:
    trap, path = tmp_path / "ran", tmp_path / "model.lcz"
    payload = pickle.dumps(Touch(trap))
    header, data = opened(sound)
    named = copy.deepcopy(header) | {"a": {"_target_": "os.system", "command": f"touch {trap}"}}
    for case in (payload, packed.MAGIC + payload, sealed(payload, data), sealed(json.dumps(header).encode(), payload)):
        path.write_bytes(case)
        with pytest.raises(ValueError, match="not a sound compressed model"):
            read(path)
    path.write_bytes(sealed(json.dumps(named).encode(), data))
    assert read(path).architecture == named["a"]
    assert not trap.exists()


@pytest.mark.parametrize(
    "edit",
    [
        {"kind": "keep", "layer": "raw", "side": "out", "index": [99]},
        {"kind": "keep", "layer": "raw", "side": "out", "index": []},
        {"kind": "keep", "layer": "nothing", "side": "out", "index": [0]},
        {"kind": "keep", "layer": "", "side": "out", "index": [0]},
        {"kind": "keep", "layer": "raw"},
        {"kind": "keep", "layer": 3, "side": "out", "index": [0]},
        {"kind": "keep", "layer": "raw", "side": "up", "index": [0]},
        {"kind": "fold", "norm": "raw", "into": "raw"},
        {"kind": "factor", "layer": "raw", "form": "svd", "ranks": [4]},
        {"kind": "factor", "layer": "raw", "form": "svd", "ranks": [10**12]},
        {"kind": "factor", "layer": "raw", "form": "svd", "ranks": 4},
        {"kind": "factor", "layer": "raw", "form": ["svd"], "ranks": [4]},
        {"kind": "factor", "layer": "", "form": "svd", "ranks": [4]},
        {"kind": "reuse", "layer": "raw", "widths": [24, 8], "shape": [16, 8]},
        {"kind": "reuse", "layer": "raw", "widths": [24, 8], "shape": [15, 8]},
        {"kind": "reuse", "layer": "raw", "widths": [24, 8, 8], "shape": [16, 8], "after": "raw"},
        {"kind": "tie", "layers": ["raw", "sparse"]},
        {"kind": "tie", "layers": ["raw", 3]},
        {"kind": "tie", "layers": []},
        {"kind": "run", "layer": "raw"},
        {"kind": ["keep"]},
        {},
    ],
)
def test_edits_that_do_not_fit_are_refused(edit: dict[str, Any], sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.lcz"
    path.write_bytes(with_edit(sound, edit))
    unfit = read(path)
    with pytest.raises(ValueError, match=r"do not fit the base architecture|not that of the file"):
        rebuild(unfit, base())


@pytest.mark.parametrize("layer", ["nothing", "raw.weight", "raw.nothing", "steps"])
def test_quantizers_of_layers_that_there_are_not_are_refused(layer: str, sound: bytes, tmp_path: Path) -> None:
    header, data = opened(sound)
    path = tmp_path / "model.lcz"
    path.write_bytes(sealed(json.dumps(header | {"q": [[layer, 0, 15, 1]]}).encode(), data))
    unfit = read(path)
    with pytest.raises(ValueError, match=f"a quantizer for '{layer}', a layer that the base architecture lacks"):
        rebuild(unfit, base())


def test_quantizers_on_outputs_that_there_are_not_are_refused(sound: bytes, tmp_path: Path) -> None:
    header, data = opened(sound)
    path = tmp_path / "model.lcz"
    path.write_bytes(sealed(json.dumps(header | {"q": [["nothing", 0, 15, 1, []]]}).encode(), data))
    unfit = read(path)
    with pytest.raises(ValueError, match="a quantizer for 'nothing', a layer that the base architecture lacks"):
        rebuild(unfit, base())
