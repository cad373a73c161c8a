"""Mutates files and opens them: nothing but a ValueError may come out, in little time and memory.

python benchmarks/fuzz.py packed --minutes 10 --seed 0 --record reports/records/fuzz.json
python benchmarks/fuzz.py onnx --minutes 5 --seed 0 --record reports/records/fuzz.json

Half of the mutants of packed files change the data and half the header, most of them under a checksum that is made
right again; what can be read is rebuilt. Of ONNX files, some are damaged and some have no seal, but in most the model
itself is changed under a right seal; what opens is run. All is done in a process of its own whose address space is
limited; a death of that process is a finding too. A case is made again from its number and the seed: --case 12345
opens it here.
"""

import argparse
import importlib
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

ROOM = 512 * 2**20
BATCH = 200
SLOW, STUCK = 10.0, 120.0


def held(key: str) -> int:
    """Bytes of memory of this process, by its name in /proc."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def read_mutants(kind: str, files: list[bytes], seed: int, first: int, until: float, pipe: Connection) -> None:
    """Open cases from the number `first` on, telling the number of each before it is opened."""
    torch.set_num_threads(1)
    about = importlib.import_module(f"fuzz_{kind}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / about.NAME
        about.outcome(files[0], path)  # what is loaded late is loaded now
        resource.setrlimit(resource.RLIMIT_AS, (held("VmSize") + ROOM,) * 2)
        before, number = held("VmRSS"), first
        while time.monotonic() < until:
            seen: list[tuple[int, str, float]] = []
            for case in range(number, number + BATCH):
                start = time.perf_counter()
                pipe.send(case)
                found = about.outcome(about.mutant(files, case, seed), path)
                seen.append((case, found, time.perf_counter() - start))
            number += BATCH
            pipe.send((seen, held("VmHWM") - before))


@dataclass
class Seen:
    """What came of the cases so far, of which there are `good` ones; `number` is the next."""

    good: tuple[str, ...]
    number: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    grown: int = 0
    slowest: tuple[float, int] = (0.0, -1)

    def add(self, batch: list[tuple[int, str, float]], grown: int) -> None:
        """Count a batch of cases."""
        self.number, self.grown = batch[-1][0] + 1, max(self.grown, grown)
        for case, found, seconds in batch:
            good = found in self.good
            self.outcomes[found if good else found.split(":")[0]] += 1
            self.slowest = max(self.slowest, (seconds, case))
            if not good or seconds > SLOW:
                self.find(case, f"{found}, {seconds:.1f} s")

    def find(self, case: int, what: str) -> None:
        """Note what must not be."""
        self.findings.append({"case": case, "outcome": what})
        print(self.findings[-1], flush=True)


def fuzz(kind: str, files: list[bytes], seed: int, minutes: float) -> Seen:
    """Open mutants for so long, in another process once one has ended."""
    until, seen = time.monotonic() + 60 * minutes, Seen(importlib.import_module(f"fuzz_{kind}").GOOD)
    context = multiprocessing.get_context("spawn")
    while time.monotonic() < until:
        here, there = context.Pipe(duplex=False)
        child = context.Process(target=read_mutants, args=(kind, files, seed, seen.number, until, there))
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
    """Fuzz, or open one case, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("packed", "onnx"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=24, help="sound files to begin with")
    parser.add_argument("--case", type=int, help="open this one here")
    parser.add_argument("--record", type=Path, help="where to write what was seen, beside what is there of others")
    arguments = parser.parse_args()
    about = importlib.import_module(f"fuzz_{arguments.kind}")
    torch.manual_seed(arguments.seed)
    draw = torch.Generator().manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        files = [about.written(draw, Path(folder)) for _ in range(arguments.files)]
        if arguments.case is not None:
            print(about.outcome(about.mutant(files, arguments.case, arguments.seed), Path(folder) / about.NAME))
            return
    seen = fuzz(arguments.kind, files, arguments.seed, arguments.minutes)
    record = {
        "seed": arguments.seed,
        "minutes": arguments.minutes,
        "cases": seen.outcomes.total(),
        "outcomes": dict(sorted(seen.outcomes.items())),
        "findings": seen.findings,
        "memory_grown_mib": round(seen.grown / 2**20, 1),
        "slowest": {"seconds": round(seen.slowest[0], 3), "case": seen.slowest[1]},
        "format_version": about.VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(record, indent=2))
    if arguments.record:
        kept = json.loads(arguments.record.read_text(encoding="utf-8")) if arguments.record.exists() else {}
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(kept | {arguments.kind: record}, indent=2) + "\n"
        arguments.record.write_text(text, encoding="utf-8")
    if record["findings"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
