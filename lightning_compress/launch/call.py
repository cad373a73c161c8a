"""The worker's side: calls a job's function and writes down how that ended.

`python -m lightning_compress.launch.call JOB_FILE` is a whole worker; further ranks run the same command.
"""

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_compress.core.files import write_text
from lightning_compress.launch.job import Cause, Job, Outcome

#: What a worker prints goes here, in the job's folder.
LOG = "log.txt"
#: How a worker ends that had no room to write down how it ended.
UNWRITTEN = 74

_JOB, _OUTCOME, _ERROR = "job.json", "outcome.json", "error.txt"
_NO_DISK = (errno.ENOSPC, errno.EDQUOT)
_MEMORY_TEXTS = ("out of memory", "allocate memory", "cublas_status_alloc_failed")
# What the writer behind `torch.save` says on a full disk; it keeps no error number.
_DISK_TEXTS = ("unexpected pos", "iostream error", "file write failed", "no space left on device")
# Bytes kept back from the function: where it has taken all memory there is, saying so takes some.
_SPARE = 4 << 20
# What Lightning raises after a SIGTERM; by name, as it is not imported for that.
_TERMINATED = "SIGTERMException"
# Where Lightning finds a process's rank, first one first.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def write(job: Job) -> Path:
    """Put down what the worker needs, and remove what an earlier attempt left; the file for `run`.

    Raises:
        ValueError: the target is not written `package.module:function`, or an argument is not plain JSON data.
    """
    if not all(part.isidentifier() for part in job.target.replace(":", ".", 1).split(".")) or ":" not in job.target:
        raise ValueError(f"the target of job {job.name!r} must be package.module:function, not {job.target!r}")
    record = {"target": job.target, "arguments": job.arguments, "path": [os.path.abspath(each) for each in sys.path]}
    try:
        text = json.dumps(record)
    except TypeError as error:
        raise ValueError(f"the arguments of job {job.name!r} must be plain JSON data: {error}") from error
    folder = job.folder.absolute()
    for stale in (folder / _OUTCOME, folder / _ERROR, *folder.glob("rank-*.json")):
        stale.unlink(missing_ok=True)
    write_text(folder / _JOB, text)
    return folder / _JOB


def run(job_file: Path) -> int:
    """Call the function and write down how it ended, beside `job_file`; 0, 1 where it failed, or `UNWRITTEN`.

    Of several ranks the first one writes; another writes only that it failed, which tells why the first one ended.
    On SIGTERM the process dies of it, also where Lightning held it back to the end of a batch: only the launcher knows
    who sent it.
    """
    rank = int(next((os.environ[name] for name in _RANKS if name in os.environ), 0))
    trace = ""
    spare = bytearray(_SPARE)
    try:
        outcome = Outcome("done", value=_call(job_file))
        text = json.dumps(asdict(outcome))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if type(error).__name__ == _TERMINATED:
            _die()
        del spare
        outcome, trace = Outcome(classify(error), one_line(error)), traceback.format_exc()
        text = json.dumps(asdict(outcome))
    if rank > 0 and outcome.cause == "done":
        return 0
    try:
        # The outcome last: who sees it takes the job to have ended, and reads the trace.
        if trace and rank == 0:
            write_text(job_file.with_name(_ERROR), trace)
        write_text(job_file.with_name(_OUTCOME if rank == 0 else f"rank-{rank}.json"), text)
    except OSError as error:
        if error.errno not in _NO_DISK:
            raise
        return UNWRITTEN
    sys.stderr.write(trace)
    return int(outcome.cause != "done")


def read(folder: Path) -> Outcome | None:
    """What the worker wrote down in the job's folder, or None.

    A rank that found no room comes first: the first rank then only says that it lost the other one.
    """
    written = [_outcome(path) for path in sorted(folder.glob("rank-*.json"))]
    first = _outcome(folder / _OUTCOME) if (folder / _OUTCOME).exists() else None
    if first is None:
        return next(iter(written), None)
    if first.cause == "error":
        return next((each for each in written if each.cause in ("memory", "disk")), first)
    return first


def classify(error: BaseException) -> Cause:
    """Whether an exception, or one that it came from, says that memory or disk space ran out.

    >>> classify(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), classify(ValueError("lr"))
    ('memory', 'error')
    """
    for each in _chain(error):
        text = str(each).lower() if isinstance(each, RuntimeError) else ""
        number = each.errno if isinstance(each, OSError) else None
        if number in _NO_DISK or any(known in text for known in _DISK_TEXTS):
            return "disk"
        # By name, as torch is not imported for that.
        named = isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError"
        if named or number == errno.ENOMEM or any(known in text for known in _MEMORY_TEXTS):
            return "memory"
    return "error"


def one_line(error: BaseException) -> str:
    r"""Type and message of an exception.

    >>> one_line(ValueError("no such file\nmore"))
    'ValueError: no such file more'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _die() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _call(job_file: Path) -> Any:
    record = json.loads(job_file.read_text())
    sys.path[:] = record["path"]
    module, _, name = record["target"].partition(":")
    return getattr(import_module(module), name)(**record["arguments"])


def _outcome(path: Path) -> Outcome:
    return Outcome(**json.loads(path.read_text()))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
