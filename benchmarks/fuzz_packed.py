"""Packed files with something wrong: what `fuzz.py packed` reads."""

import copy
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import torch
from fuzz_bytes import scrambled
from torch import nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import packed

NAME, VERSION = "case.lcz", packed.VERSION
GOOD = ("refused", "unfit", "read")
ODD: list[Any] = [0, 1, -1, 2, 7, 15, 255, 2**16, 2**20, 2**31, 2**40, 2**62, 2**63, 10**30, 0.5, 1e308]
ODD += [float("nan"), "", "0", "conv.weight", "ff", [], [0], [[]], {}, {"b": 4}, None, True, False]


def base() -> nn.Module:
    """The network of all files to mutate, with random weights."""
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 24))
    net.append(nn.Linear(24, 10))
    return net.eval().requires_grad_(False)


def written(draw: torch.Generator, folder: Path) -> bytes:
    """A sound file with tensors of random kinds."""
    net = edits.replay(base(), keeps := [edits.keep("5", "out", torch.arange(0, 10, 2))])
    stored = {name: stored_as(getattr(*at).detach(), draw) for name, at in surgery.own_names(net).items()}
    for name, (module, attribute) in surgery.own_names(net).items():
        getattr(module, attribute).data.copy_(stored[name].value)
    fixed = FixedQuantizer(torch.tensor(0.1), torch.tensor(3), 0, 15)
    surgery.put_on_input(net.get_submodule("4"), fixed)
    surgery.put_on_output(net.get_submodule("2"), fixed)
    surgery.put_on_input(net.get_submodule("0"), FixedQuantizer(torch.tensor(0.5), torch.tensor(0), -8, 7))
    packed.write(Compact(net, stored, keeps), folder / "sound.lcz", architecture={"name": "net"})
    return (folder / "sound.lcz").read_bytes()


def stored_as(value: torch.Tensor, draw: torch.Generator) -> Stored:
    """The tensor in one of the ways there are."""
    stored, kind = Stored(value.clone()), int(torch.randint(0, 6, (), generator=draw))
    if value.dim() < 2 or kind == 0:
        return stored
    codes = torch.randint(0, 8, value.shape, generator=draw)
    if kind == 1:
        stored = stored.coded(
            codes, torch.rand(len(value)) + 0.1, codes.flatten(1)[:, 0], bits=3, axis=0, symmetric=False
        )
    elif kind == 2:
        sizes = torch.tensor([1] * value.shape[1])
        stored = stored.coded(codes - 3, torch.rand(len(value), len(sizes)) + 0.1, bits=4, groups=sizes)
    elif kind == 3:
        blocks = codes.flatten(1)[:, ::3]
        return stored.chosen(blocks, torch.randn(8, 3, generator=draw)) if value[0].numel() % 3 == 0 else stored
    elif kind == 4:
        stored = stored.chosen(codes, torch.linspace(-1, 1, 8), torch.rand(len(value)), axis=0)
    return stored.masked(torch.rand(value.shape, generator=draw) < 0.3)


def mutant(files: list[bytes], number: int, seed: int) -> bytes:
    """The case of this number."""
    rng = random.Random(f"{seed}:{number}")
    file = rng.choice(files)
    text, start = packed._unwrap(file)
    data = file[start:]
    if rng.random() < 0.5:
        data = scrambled(data, rng)
    elif rng.random() < 0.8:
        text = reworded(text, rng)
    else:
        text = scrambled(text, rng)
    made = sealed(text, data)
    return scrambled(made, rng) if rng.random() < 0.1 else made


def sealed(text: bytes, data: bytes) -> bytes:
    """A file whose checksum is right, whatever it says."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15, zdict=packed._WORDS)
    short = deflate.compress(text) + deflate.flush()
    rest = struct.pack("<I", len(short)) + short + data
    return packed.MAGIC + struct.pack("<BI", packed.VERSION, zlib.crc32(rest)) + rest


def reworded(text: bytes, rng: random.Random) -> bytes:
    """The header with some of its values changed for odd ones or for each other."""
    header = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = list(walked(header))
        if not places:
            break
        holder, key = rng.choice(places)
        way = rng.randrange(6)
        if way == 0:
            other, from_key = rng.choice(places)
            holder[key] = copy.deepcopy(other[from_key])
        elif way == 1 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        elif way == 2:
            del holder[key]
        elif way == 3 and type(holder[key]) is int:
            holder[key] += rng.choice((-1, 1, 8, 2 ** rng.randrange(64)))
        elif way == 4 and isinstance(holder, dict):
            holder[rng.choice("bxgulnsmdaetq")] = copy.deepcopy(rng.choice(ODD))
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return json.dumps(header).encode()


def walked(node: Any) -> Any:
    """Every place in a header where there is a value."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from walked(node[key])


def outcome(file: bytes, path: Path) -> str:
    """What reading and rebuilding a file came to: "refused", "unfit" or "read", or the name of another exception."""
    path.write_bytes(file)
    try:
        unpacked = packed.read(path)
    except ValueError as error:
        return f"no memory in read: {str(error)[:200]}" if "alloc" in str(error) else "refused"
    except BaseException as error:
        return f"{type(error).__name__} in read: {str(error)[:200]}"
    try:
        packed.rebuild(unpacked, base())
    except ValueError:
        return "unfit"
    except BaseException as error:
        return f"{type(error).__name__} in rebuild: {str(error)[:200]}"
    return "read"
