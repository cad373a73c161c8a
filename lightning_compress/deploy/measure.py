"""Time model.onnx beside dense.onnx on this device; needs numpy and onnxruntime.

python measure.py --batch-size 64 --threads 1        writes latency-<device>.json beside this file
"""

import argparse
import gc
import hashlib
import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
#: Both ways to run integer codes: in integer kernels, or made floats when the session opens.
CANDIDATES = (("dense", "integer"), ("model", "integer"), ("model", "float"))


def device_name() -> str:
    """What the system calls its processor."""
    for file, pattern in (("/proc/cpuinfo", r"model name\s*: (.+)"), ("/proc/device-tree/model", r"([^\0]+)")):
        path = Path(file)
        found = re.search(pattern, path.read_text(errors="replace")) if path.exists() else None
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def whole(name: str) -> Path:
    """A file of this folder, which has to be the one that was written here."""
    path, listed = HERE / name, (HERE / "checksums.sha256").read_text().splitlines()
    if f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}" not in listed:
        raise ValueError(f"{path} is damaged, or not the file that checksums.sha256 lists: copy the folder again")
    return path


def session(name: str, kernels: str, threads: int) -> onnxruntime.InferenceSession:
    """One of the two models, opened as it was in the study."""
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if kernels == "float":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads == 1:  # nothing spins while it waits
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        str(whole(f"{name}.onnx")), options, ["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )


def seconds(opened: onnxruntime.InferenceSession, feed: dict[str, Any], repeats: int) -> float:
    """Mean seconds of a call, over `repeats` in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        opened.run(None, feed)
    return (time.perf_counter() - start) / repeats


def timed(batch: int, threads: int, rounds: int) -> dict[tuple[str, str], np.ndarray]:
    """Seconds of every candidate in every round: A B C, B C A, C A B, ..., so that drift hits all alike."""
    opened = {candidate: session(*candidate, threads) for candidate in CANDIDATES}
    first = opened[CANDIDATES[0]].get_inputs()[0]
    known = opened[CANDIDATES[0]].get_modelmeta().custom_metadata_map  # how long texts are
    shape = (batch, *(int(known[size]) if isinstance(size, str) else size for size in first.shape[1:]))
    tokens = first.type == "tensor(int64)"
    inputs = np.ones(shape, np.int64) if tokens else np.random.default_rng(0).standard_normal(shape, np.float32)
    feeds = {key: {one.get_inputs()[0].name: inputs} for key, one in opened.items()}
    repeats, samples = {}, {key: np.empty(rounds) for key in opened}
    for key, one in opened.items():
        seconds(one, feeds[key], 5)
        repeats[key] = max(1, round(1e-3 / min(seconds(one, feeds[key], 1) for _ in range(3))))
    gc.disable()  # the process ends after this
    for turn in range(rounds):
        for place in range(len(CANDIDATES)):
            key = CANDIDATES[(turn + place) % len(CANDIDATES)]
            samples[key][turn] = seconds(opened[key], feeds[key], repeats[key])
    return samples


def summary(samples: dict[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    """Milliseconds of the faster kernels, and the median of the ratios round by round; 0.5 is twice as fast."""
    dense = samples[CANDIDATES[0]]
    ratios = {kernels: float(np.median(samples["model", kernels] / dense)) for _, kernels in CANDIDATES[1:]}
    kernels = min(ratios, key=lambda name: ratios[name])
    p10, median, p90 = (float(value) for value in np.percentile(samples["model", kernels] * 1e3, (10, 50, 90)))
    return {
        "kernels": kernels,
        "latency_ms": median,
        "latency_p10_ms": p10,
        "latency_p90_ms": p90,
        "latency_ratio": ratios[kernels],
        "dense_latency_ms": float(np.median(dense) * 1e3),
    }


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--batch-size", 64), ("--threads", 1), ("--rounds", 50)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--device", default=device_name(), help="what to call this device")
    asked = parser.parse_args()
    if min(asked.batch_size, asked.threads, asked.rounds) < 1:
        raise ValueError("expected --batch-size, --threads and --rounds from 1 up")
    found = {
        "schema": 1,
        "device": asked.device,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "threads": asked.threads,
        "batch_size": asked.batch_size,
        "latency_rounds": asked.rounds,
        **summary(timed(asked.batch_size, asked.threads, asked.rounds)),
        **{f"{name}_sha256": hashlib.sha256((HERE / f"{name}.onnx").read_bytes()).hexdigest()
           for name in ("model", "dense")},
    }  # fmt: skip
    to = HERE / f"latency-{re.sub('[^a-z0-9]+', '-', asked.device.lower()).strip('-') or 'device'}.json"
    to.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{asked.device}: model.onnx {found['latency_ms']:.3f} ms ({found['latency_p10_ms']:.3f} to "
        f"{found['latency_p90_ms']:.3f}), dense.onnx {found['dense_latency_ms']:.3f} ms, ratio "
        f"{found['latency_ratio']:.3f}, {found['kernels']} kernels\nwritten: {to}"
    )


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # onnxruntime's errors have no base class of their own
        sys.exit(f"error: {' '.join(str(error).split())}")
