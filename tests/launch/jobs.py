"""What the launchers' tests run in the workers."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def add(first: float, second: float) -> float:
    print("adding")
    return first + second


def complain(text: str) -> None:
    raise ValueError(text)


def unwritable() -> object:
    return {1, 2}


def fill_memory() -> None:
    raise MemoryError


def fill_disk() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise RuntimeError("cannot save the checkpoint") from error


def leave(code: int) -> None:
    os._exit(code)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def mark(start: str, release: str) -> list[float]:
    """Say in a file that it runs, then wait for another; the times of both."""
    began = time.monotonic()
    Path(start).touch()
    while not Path(release).exists():
        time.sleep(0.005)
    return [began, time.monotonic()]


def beat(seconds: float) -> list[float]:
    """The times at which it ran, about every millisecond, until it has run for so long."""
    beats = [time.monotonic()]
    left = seconds
    while left > 0:
        time.sleep(0.001)
        beats.append(time.monotonic())
        left -= min(beats[-1] - beats[-2], 0.05)
    return beats


def nap(seconds: float) -> list[float]:
    began = time.monotonic()
    time.sleep(seconds)
    return [began, time.monotonic()]


def environment(*names: str, **_: Any) -> dict[str, Any]:
    asked = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LOCAL_RANK", "MASTER_PORT")
    return {name: os.environ.get(name) for name in asked} | {"cwd": os.getcwd(), "argv": sys.argv}


def family(folder: str, *, stop: bool = False) -> None:
    """Three generations that never end, one of which has left the process group; each writes down its number."""
    here = Path(folder) / "pids"
    here.mkdir(parents=True, exist_ok=True)
    (here / str(os.getpid())).touch()
    code = (
        "import os, subprocess, sys, time; from pathlib import Path; Path(sys.argv[1], str(os.getpid())).touch(); "
        "depth = int(sys.argv[2]); "
        "depth and subprocess.Popen([sys.executable, *sys.orig_argv[1:-1], str(depth - 1)], start_new_session=True); "
        "time.sleep(600)"
    )
    subprocess.Popen([sys.executable, "-c", code, str(here), "1"])
    while len(list(here.iterdir())) < 3:
        time.sleep(0.005)
    (Path(folder) / "complete").touch()
    if stop:
        os.killpg(0, signal.SIGSTOP)
    time.sleep(600)


def leftovers(folder: str) -> None:
    """End well, and leave a process behind whose parent has ended."""
    here = Path(folder) / "pids"
    here.mkdir(parents=True, exist_ok=True)
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid(); Path(sys.argv[1], str(os.getpid())).touch(); time.sleep(600)"
    )
    subprocess.Popen([sys.executable, "-c", code, str(here)])
    while not list(here.iterdir()):
        time.sleep(0.005)


def rank_of_two(folder: str, fail: int | None = None) -> int:
    """Starts its second rank as Lightning does, by its own command line, and waits for it."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    Path(folder, f"argv-{rank}").write_text("\n".join(sys.orig_argv))
    if rank == 0:
        spec = sys.modules["__main__"].__spec__
        assert spec is not None
        os.environ["LOCAL_RANK"] = "0"
        command = [sys.executable, "-m", spec.name, *sys.argv[1:]]
        code = subprocess.run(command, env={**os.environ, "LOCAL_RANK": "1"}, check=False).returncode
        if code:
            raise RuntimeError(f"connection closed by peer, it ended with {code}")
    elif fail == rank:
        raise MemoryError
    return rank


def files() -> dict[str, str]:
    """What this process has open."""
    return {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) < 3} | {
        name: link for name, link in _links() if link.startswith(("pipe:", "socket:"))
    }


def _links() -> list[tuple[str, str]]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append((name, os.readlink(f"/proc/self/fd/{name}")))
        except OSError:  # the one of listing
            continue
    return found


def threads() -> list[int]:
    import torch

    return [torch.get_num_threads(), int(torch.cuda.is_initialized())]  # type: ignore[no-untyped-call]


def on_gpu() -> list[Any]:
    import torch

    return [torch.cuda.device_count(), float(torch.ones(2, device="cuda").sum()), os.environ["CUDA_VISIBLE_DEVICES"]]


def train_until_stopped() -> None:
    """A fit of Lightning, which catches SIGTERM and raises at the end of the batch."""
    import pytorch_lightning as pl
    from pytorch_lightning.demos.boring_classes import BoringModel

    class Stopped(BoringModel):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Stopped())


def train_on_two_ranks(folder: str) -> int:
    """A fit of Lightning over gloo on two processes; how many ranks there were."""
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.demos.boring_classes import BoringModel

    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(BoringModel())
    Path(folder, f"rank-{trainer.global_rank}").touch()
    return torch.distributed.get_world_size()
