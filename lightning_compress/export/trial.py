"""Opens an ONNX file and runs it once, as a program of its own: what it dies of, its caller does not.

python trial.py FILE BYTES         where BYTES is the memory that it may take on top of what it starts with
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_}
DTYPES |= {name: getattr(np, name) for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32")}
DTYPES |= {name: getattr(np, name) for name in ("int64", "uint64")}


def limit_memory(room: int) -> None:
    """Take no more than `room` bytes from here on, where the system can see to that."""
    held = Path("/proc/self/statm")
    if held.exists():
        import resource  # only there is one where there is /proc

        most = int(held.read_text().split()[0]) * resource.getpagesize() + room
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def attempt(path: str, kernels: str) -> None:
    """Open the file and run it on ones, every free dimension 1; what it thinks of such inputs does not matter."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", kernels)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed: dict[str, Any] = {}
    for one in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in one.shape]
        feed[one.name] = np.ones(shape, DTYPES.get(one.type.removeprefix("tensor(").removesuffix(")"), np.str_))
    try:
        session.run(None, feed)
    except Exception as error:  # those of onnxruntime have no base class of their own
        if "alloc" in str(error):
            raise


if __name__ == "__main__":
    limit_memory(int(sys.argv[2]))
    try:
        for disabled in ("0", "1"):
            attempt(sys.argv[1], disabled)
    except Exception as error:
        sys.exit(" ".join(f"{error or type(error).__name__}".split()))
