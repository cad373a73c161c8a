"""Run as a script, in a process of its own: load what another process saved, or train in some that are killed."""

import os
import signal
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from tests.contract import cases


class Killed(pl.Callback):
    """The process dies in the middle of the third epoch."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        if trainer.current_epoch == 2 and trainer.global_step == 2 * cases.BATCHES + 3:
            os.kill(os.getpid(), signal.SIGKILL)


def go_on(root: Path) -> None:
    """Reload each case's end for its outputs, and train it from the checkpoint of its second epoch to the end."""
    there = {name: case for name, case in cases.CASES.items() if (root / name).exists()}
    for number, (name, case) in enumerate(there.items()):
        ended = cases.module(case, seed=1000 + number)
        saved = torch.load(cases.checkpoint(root / name), weights_only=True)
        ended.load_state_dict(saved["state_dict"])
        torch.save(cases.outputs(ended.model), root / name / "outputs.pt")
        resumed = root / name / "resumed"
        start = cases.checkpoint(root / name, epoch=1)
        cases.fit(cases.module(case, seed=2000 + number), cases.trainer(resumed), start)


def be_killed(root: Path) -> None:
    """Train each network with all families in a process of its own, which is killed."""
    for name in cases.WHOLE:
        child = os.fork()
        if child == 0:
            cases.fit(cases.module(cases.CASES[name]), cases.trainer(root / name, Killed()))
            os._exit(0)
        how = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert how == -signal.SIGKILL, f"{name} ended with {how}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"go_on": go_on, "be_killed": be_killed}[sys.argv[1]](Path(sys.argv[2]))
