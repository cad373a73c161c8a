"""What jobs on a cluster do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def say(file: str) -> dict[str, str]:
    """Write that it ran; the environment it ran in."""
    with Path(file).open("a") as out:
        out.write("ran\n")
    return dict(os.environ)


def nap(seconds: float, file: str) -> str:
    """Write the own process number and that of a child, both of which then sleep; when it began and ended."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds + 60})"])
    began = time.time()
    part = Path(f"{file}.part")
    part.write_text(f"{os.getpid()} {child.pid}")
    part.replace(file)
    time.sleep(seconds)
    child.kill()
    child.wait()
    return f"{began} {time.time()}"


def hog(megabytes: int) -> int:
    """Touch so much memory; how much."""
    block = bytearray(megabytes * 2**20)
    block[::4096] = b"1" * len(block[::4096])
    time.sleep(1)
    return len(block) // 2**20


def ranks(folder: str) -> list[float]:
    """Train in two processes; the gradients' mean as each rank had it, and its number of processes."""
    import pytorch_lightning as pl
    import torch

    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1, bias=False)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            # Rank r sees the input r + 1, and the gradient is its mean over the ranks.
            loss: torch.Tensor = self.layer(torch.full((1, 1), self.global_rank + 1.0)).sum()
            return loss

        def on_after_backward(self) -> None:
            gradient = self.layer.weight.grad
            assert gradient is not None
            Path(folder, f"rank{self.global_rank}").write_text(f"{gradient.item()} {self.trainer.world_size}")

        def on_train_end(self) -> None:
            self.trainer.strategy.barrier()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Net(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 1))))
    return [float(word) for rank in range(2) for word in Path(folder, f"rank{rank}").read_text().split()]


def mortal(config: dict[str, Any], folder: str, rungs: list[int], patience: float) -> dict[str, Any]:
    """Train as the stand-in for training does, and write down each epoch; the first trial to begin its second epoch is
    killed in it.

    It kills itself because a stranger takes others for it: the daemon that Slurm has for a job holds the job's log as
    well, and when that is killed the job runs for ever, as far as Slurm knows.
    """
    from tests.sweep import toy

    place = Path(folder)

    def each_epoch(_: int) -> None:
        epoch = toy.BENCH.epochs[-1][1]
        with (place / "epochs.txt").open("a") as file:
            file.write(f"{epoch}\n")
        if place.name.startswith("trial-") and epoch == 2 and _first(place):
            os.kill(os.getpid(), signal.SIGKILL)

    toy.BENCH = toy.Bench(each_epoch=each_epoch)
    return toy.trial(config, folder, rungs, patience)


def _first(place: Path) -> bool:
    try:
        with (place.parent / "killed.txt").open("x") as file:
            file.write(place.name)
    except FileExistsError:
        return False
    return True
