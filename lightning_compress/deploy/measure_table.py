"""Time the tiny models and the networks of pieces.zip on this device; needs numpy and onnxruntime.

python measure_table.py --batch-size 64 --threads 1        writes table-<device>.json beside this file
"""

import argparse
import json
import platform
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

PIECES = "pieces.zip"
#: So many models are open at once: side by side for ratios, few enough for the memory.
GROUP = 16
SECONDS = 5e-4
Key = tuple[str, str]
Clock = Callable[[], float]


def device_name() -> str:
    """What the system calls its processor."""
    for file, pattern in (("/proc/cpuinfo", r"model name\s*: (.+)"), ("/proc/device-tree/model", r"([^\0]+)")):
        path = Path(file)
        found = re.search(pattern, path.read_text(errors="replace")) if path.exists() else None
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def opened(model: bytes, kernels: str, batch: int, threads: int) -> Callable[[], object]:
    """A call that runs a model on random inputs, opened as it is in a study."""
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    if kernels == "float":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads == 1:  # nothing spins while it waits
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model, options, ["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    wanted = session.get_inputs()[0]
    draw, shape = np.random.default_rng(0), (batch, *wanted.shape[1:])
    codes = wanted.type == "tensor(uint8)"
    feed = {wanted.name: draw.integers(0, 256, shape, np.uint8) if codes else draw.standard_normal(shape, np.float32)}
    return lambda: session.run(None, feed)


def seconds(call: Callable[[], object], repeats: int, clock: Clock) -> float:
    """Mean seconds of a call, over `repeats` in a row."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def side_by_side(calls: dict[Key, Callable[[], object]], rounds: int, clock: Clock) -> dict[Key, np.ndarray]:
    """Seconds of every call in every round: A B C, B C A, C A B, ..., so that drift hits all alike."""
    names, repeats = list(calls), {}
    for name, call in calls.items():
        seconds(call, 2, clock)
        repeats[name] = max(1, round(SECONDS / min(seconds(call, 1, clock) for _ in range(2))))
    samples = {name: np.empty(rounds) for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name][turn] = seconds(calls[name], repeats[name], clock)
    return samples


def groups(families: list[dict[str, Any]]) -> Iterator[list[Key]]:
    """What is to be open at once: a few models of a family and of equal channels in, with what they are without."""
    for family in families:
        for row, without in zip(family["models"], family["without"], strict=True):
            for start in range(0, len(row), GROUP):
                keys = [(model, kernels) for model in row[start : start + GROUP] for kernels in family["kernels"]]
                yield keys + [(without, kernels) for kernels in family["kernels"] if without]


def grid(family: dict[str, Any], kernels: str, shares: dict[Key, np.ndarray]) -> list[list[float]]:
    """Times of a family over channels in and out; where it has something around it, what the layer adds to that."""
    rows = []
    for row, without in zip(family["models"], family["without"], strict=True):
        around = shares[without, kernels] if without else 0.0
        # Below a twentieth of the whole the difference is noise.
        rows.append(
            [
                max(float(np.median(shares[model, kernels] - around)), 0.05 * float(np.median(shares[model, kernels])))
                for model in row
            ]
        )
    return rows


def measured(archive: Path, batch: int, threads: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The manifest of an archive with the milliseconds of everything in it, by kernels.

    All are timed beside one reference, whose time in the same rounds takes drift of the machine out. On one thread the
    processor's own time for it counts, so that the turns of other programs do not.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    with zipfile.ZipFile(archive) as models:
        manifest = json.loads(models.read("manifest.json"))
        reference, units, shares = (manifest.pop("reference"), "integer"), [], {}
        networks = [[(one["model"], kernels) for kernels in one["kernels"]] for one in manifest["networks"]]
        every = [*groups(manifest["layers"]), *networks]
        for done, keys in enumerate(every, 1):
            names = dict.fromkeys([*keys, reference])
            calls = {(name, way): opened(models.read(name), way, batch, threads) for name, way in names}
            samples = side_by_side(calls, rounds, clock)
            units.append(samples[reference])
            shares.update({key: samples[key] / samples[reference] for key in keys})
            say(f"{done} of {len(every)} groups of models timed")
    unit = float(np.median(np.concatenate(units))) * 1e3
    for family in manifest["layers"]:
        family["ms"] = {way: (np.array(grid(family, way, shares)) * unit).tolist() for way in family.pop("kernels")}
        del family["models"], family["without"]
    for one in manifest["networks"]:
        model = one.pop("model")
        one["ms"] = {way: float(np.median(shares[model, way])) * unit for way in one.pop("kernels")}
    bench = {"threads": threads, "batch_size": batch, "rounds": rounds}
    return {
        **{"schema": 1, "device": device_name(), "runtime": f"onnxruntime {onnxruntime.__version__}"},
        **bench,
        **manifest,
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--batch-size", 64), ("--threads", 1), ("--rounds", 15)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--device", default=device_name(), help="what to call this device")
    asked = parser.parse_args()
    if min(asked.batch_size, asked.threads, asked.rounds) < 1:
        raise ValueError("expected --batch-size, --threads and --rounds from 1 up")
    here = Path(__file__).resolve().parent
    found = measured(here / PIECES, asked.batch_size, asked.threads, asked.rounds, print)
    to = here / f"table-{re.sub('[^a-z0-9]+', '-', asked.device.lower()).strip('-') or 'device'}.json"
    to.write_text(json.dumps({**found, "device": asked.device}) + "\n")
    print(f"written: {to}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # onnxruntime's errors have no base class of their own
        sys.exit(f"error: {' '.join(str(error).split())}")
