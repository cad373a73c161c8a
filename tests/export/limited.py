"""Opens every file of a folder in an address space that is limited: `limited.py MODULE FUNCTION FOLDER`."""

import importlib
import json
import resource
import sys
from pathlib import Path


def taken(key: str) -> int:
    """Bytes that the system says of this process."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith(key)) * 1024


if __name__ == "__main__":
    opens = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
    limit = taken("VmSize") + 400 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before, out = taken("VmRSS"), {}
    for path in sorted(Path(sys.argv[3]).iterdir()):
        try:
            opens(path)
            out[path.name] = "opened"
        except BaseException as error:
            out[path.name] = type(error).__name__
    print(json.dumps({"outcomes": out, "grown": taken("VmHWM") - before}))
