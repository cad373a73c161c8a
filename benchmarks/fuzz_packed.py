"""Mutates compressed files and reads them: nothing but a ValueError may come out, in little time and memory.

python benchmarks/fuzz_packed.py --minutes 10 --seed 0 --record reports/records/fuzz.json

Half of the mutants change the data and half the header, most of them under a checksum that is made right again. They
are read, and what can be read is rebuilt, in a process of their own whose address space is limited; a death of that
process is a finding too. A case is made again from its number and the seed: --case 12345 reads it here.
"""

import argparse
import copy
import json
import multiprocessing
import platform
import random
import resource
import struct
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import packed

ROOM = 512 * 2**20
BATCH = 200
GOOD = ("refused", "unfit", "read")
SLOW, STUCK = 10.0, 120.0
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


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """Some bytes of it flipped, overwritten, left out, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        way = rng.randrange(5)
        if way == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            out[place : place + size] = rng.choice((b"\xff", b"\0", b"\x80", rng.randbytes(1))) * size
        elif way == 2:
            del out[place : place + size]
        elif way == 3:
            out[place:place] = rng.randbytes(size)
        else:
            other = rng.randrange(len(out) + 1)
            out[place:place] = out[other : other + size]
    return bytes(out)


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


def held(key: str) -> int:
    """Bytes of memory of this process, by its name in /proc."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def read_mutants(files: list[bytes], seed: int, first: int, until: float, pipe: Connection) -> None:
    """Read cases from the number `first` on, telling the number of each before it is read."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        outcome(files[0], Path(folder) / "case.lcz")  # what is loaded late is loaded now
        resource.setrlimit(resource.RLIMIT_AS, (held("VmSize") + ROOM,) * 2)
        before, number = held("VmRSS"), first
        while time.monotonic() < until:
            seen: list[tuple[int, str, float]] = []
            for case in range(number, number + BATCH):
                start = time.perf_counter()
                pipe.send(case)
                seen.append(
                    (case, outcome(mutant(files, case, seed), Path(folder) / "case.lcz"), time.perf_counter() - start)
                )
            number += BATCH
            pipe.send((seen, held("VmHWM") - before))


@dataclass
class Seen:
    """What came of the cases so far; `number` is the next."""

    number: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    grown: int = 0
    slowest: tuple[float, int] = (0.0, -1)

    def add(self, batch: list[tuple[int, str, float]], grown: int) -> None:
        """Count a batch of cases."""
        self.number, self.grown = batch[-1][0] + 1, max(self.grown, grown)
        for case, found, seconds in batch:
            good = found in GOOD
            self.outcomes[found if good else found.split(":")[0]] += 1
            self.slowest = max(self.slowest, (seconds, case))
            if not good or seconds > SLOW:
                self.find(case, f"{found}, {seconds:.1f} s")

    def find(self, case: int, what: str) -> None:
        """Note what must not be."""
        self.findings.append({"case": case, "outcome": what})
        print(self.findings[-1], flush=True)


def fuzz(files: list[bytes], seed: int, minutes: float) -> Seen:
    """Read mutants for so long, in another process once one has ended."""
    until, seen = time.monotonic() + 60 * minutes, Seen()
    context = multiprocessing.get_context("spawn")
    while time.monotonic() < until:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=read_mutants, args=(files, seed, seen.number, until, there))
        child.start()
        there.close()
        last = follow(here, child, seen)
        child.join()
        if child.exitcode:
            seen.find(last, f"the process ended with {child.exitcode}")
            seen.number = last + 1
    return seen


def follow(here: Connection, child: Any, seen: Seen) -> int:
    """Take what a process tells until it ends; the number of the last case that it began."""
    last = seen.number
    while True:
        if not here.poll(STUCK):
            child.kill()
        try:
            message = here.recv()
        except EOFError:
            return last
        if isinstance(message, int):
            last = message
        else:
            seen.add(*message)


def main() -> None:
    """Fuzz, or read one case, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=24, help="sound files to begin with")
    parser.add_argument("--case", type=int, help="read this one here")
    parser.add_argument("--record", type=Path, help="where to write what was seen")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    draw = torch.Generator().manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        files = [written(draw, Path(folder)) for _ in range(arguments.files)]
        if arguments.case is not None:
            print(packed.read(_kept(mutant(files, arguments.case, arguments.seed), Path(folder))))
            return
    seen = fuzz(files, arguments.seed, arguments.minutes)
    record = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "cases": seen.outcomes.total(),
        "outcomes": dict(sorted(seen.outcomes.items())),
        "findings": seen.findings,
        "memory_grown_mib": round(seen.grown / 2**20, 1),
        "slowest": {"seconds": round(seen.slowest[0], 3), "case": seen.slowest[1]},
        "format_version": packed.VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(record, indent=2))
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if record["findings"]:
        raise SystemExit(1)


def _kept(file: bytes, folder: Path) -> Path:
    path = folder / "case.lcz"
    path.write_bytes(file)
    return path


if __name__ == "__main__":
    main()
