"""ONNX files with something wrong: what `fuzz.py onnx` opens."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from fuzz_bytes import scrambled
from google.protobuf.message import Message
from torch import nn

from lightning_compress.core import surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import runtime, sealed
from lightning_compress.export.onnx import export

NAME, VERSION = "case.onnx", sealed.VERSION
#: Each is opened in a process of its own first, where it gets that far, which takes a while.
UNSEALED = 0.01
GOOD = ("refused", "unrunnable", "read")
ODD_NUMBERS = [0, 1, -1, 2, 3, 7, 8, 16, 21, 99, 255, 2**16, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63)]
ODD_WORDS = [
    "",
    "x",
    "input",
    "output",
    "MatMul",
    "If",
    "Loop",
    "Reshape",
    "Expand",
    "Range",
    "Tile",
    "ConstantOfShape",
]
ODD_WORDS += ["com.microsoft", "evil", "/etc/passwd", "../model.onnx", "DequantizeLinear", "Gather", "Resize", "Cast"]


def written(draw: torch.Generator, folder: Path) -> bytes:
    """A sound file: a convolution and a linear layer in one of the ways there are."""
    kind = int(torch.randint(0, 4, (), generator=draw))
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    net = net.eval().requires_grad_(False)
    stored = {name: Stored(getattr(*at).detach().clone()) for name, at in surgery.own_names(net).items()}
    for name in ("0.weight", "3.weight", "5.weight") if kind else ():
        value = stored[name].value
        codes = torch.randint(-7, 8, value.shape, generator=draw)
        if kind == 3 and value.dim() == 2:
            groups = torch.full((value.shape[1] // 16,), 16)
            scale = torch.rand(len(value), len(groups), generator=draw) + 0.1
            stored[name] = stored[name].coded(codes, scale, bits=4, groups=groups)
        else:
            stored[name] = stored[name].coded(codes, torch.rand(len(value), generator=draw) + 0.1, bits=4, axis=0)
    if kind == 2:
        for layer in ("0", "3", "5"):
            fixed = FixedQuantizer(torch.tensor(0.1), torch.tensor(3), 0, 255)
            surgery.put_on_input(net.get_submodule(layer), fixed)
    return export(Compact(net, stored), torch.zeros(2, 1, 8, 8), folder / "sound.onnx").read_bytes()


def mutant(files: list[bytes], number: int, seed: int) -> bytes:
    """The case of this number: damage that the seal tells, or a file without a seal or under a right one that lies."""
    rng = random.Random(f"{seed}:{number}")
    file = rng.choice(files)
    if rng.random() < 0.1:
        return scrambled(file, rng)
    model = file[sealed.SEAL :]
    model = scrambled(model, rng) if rng.random() < 0.3 else reworded(model, rng)
    return model if rng.random() < UNSEALED else sealed.sealed(model)


def reworded(model: bytes, rng: random.Random) -> bytes:
    """The model with some of its fields changed for odd ones or for each other."""
    proto = onnx.load_model_from_string(model)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        owner, name = rng.choice(list(walked(proto)))
        change(owner, name, rng)
    return proto.SerializeToString()


def walked(owner: Any) -> Any:
    """Every field that is set in a message and in those inside it."""
    for field, value in owner.ListFields():
        yield owner, field.name
        for inner in value if isinstance(value, Sequence) else [value]:
            if isinstance(inner, Message):
                yield from walked(inner)


def change(owner: Any, name: str, rng: random.Random) -> None:
    """Change a field."""
    value = getattr(owner, name)
    if isinstance(value, Message) or rng.random() < 0.1:
        owner.ClearField(name)
    elif not isinstance(value, Sequence) or isinstance(value, str | bytes):
        set_field(owner, name, changed(value, rng))
    else:
        change_one(value, rng)


def set_field(owner: Any, name: str, value: Any) -> None:
    """Set a field; one that cannot hold the value loses what it has."""
    try:
        setattr(owner, name, value)
    except (ValueError, TypeError):
        owner.ClearField(name)


def change_one(values: Any, rng: random.Random) -> None:
    """Change one of the values of a field that has some."""
    place = rng.randrange(len(values))
    way = rng.randrange(3)
    if way == 0:
        del values[place]
    elif way == 1 or isinstance(values[place], Message):
        values.append(values[place])
    else:
        one = changed(values[place], rng)
        try:
            values[place] = one
        except (ValueError, TypeError):
            del values[place]


def changed(value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool | int):
        return rng.choice(ODD_NUMBERS) if rng.random() < 0.7 else value + rng.choice((-1, 1, 16))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if isinstance(value, str):
        return rng.choice(ODD_WORDS)
    return scrambled(value, rng)


def outcome(file: bytes, path: Path) -> str:
    """What opening and running a file came to: "refused", "unrunnable" or "read", or the name of another exception."""
    path.write_bytes(file)
    try:
        run = runtime.session(path)
    except ValueError as error:
        here = file.startswith(sealed.sealed(b"")[:-64])  # other files are tried elsewhere
        return f"no memory: {str(error)[:200]}" if here and "alloc" in str(error) else "refused"
    except BaseException as error:
        return f"{type(error).__name__} in session: {str(error)[:200]}"
    try:
        run(np.ones((2, 1, 8, 8), np.float32))
    except ValueError:
        return "unrunnable"
    except BaseException as error:
        return f"{type(error).__name__} in run: {str(error)[:200]}"
    return "read"
