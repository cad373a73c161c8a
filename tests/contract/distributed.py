"""Run as a script: training on two ranks over gloo; what each rank ends with goes into a folder."""

import sys
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.callback import Compress
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import OneShot, Polynomial
from lightning_compress.core.task import classification
from lightning_compress.data.digits import Digits
from lightning_compress.distill.adversarial import Adversarial
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.distill.mutual import Mutual
from lightning_compress.distill.own import OwnTeacher
from lightning_compress.distill.reuse import ReuseClassifier
from lightning_compress.lowrank.method import LowRank
from lightning_compress.module import CompressionModule
from lightning_compress.prune.dynamics import Rewind
from lightning_compress.prune.method import Prune
from lightning_compress.prune.regrow import Regrow
from lightning_compress.quantize.freeze import Freeze
from lightning_compress.quantize.method import Quantize
from lightning_compress.share.method import Share
from lightning_compress.slim.method import Slim
from tests.contract import cases, nets

STEPS = 6
#: With all families that apply: the channels of a recurrent layer cannot go.
KINDS = {"lstm": (cases.Recurrent, False), **{kind: (net, True) for kind, (net, _) in nets.IN_EVERY_SUBSET.items()}}


def plain_net() -> nn.Module:
    """No dropout and no batch norm, so that two ranks with half a batch each are one rank with a whole one."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)
    )


def methods(teacher: nn.Module, *, averaged: bool = False) -> list[Method]:
    """With `averaged` those to which two halves of a batch are as good as the whole: no squares of each, no codes."""
    ramp = partial(Polynomial, end=0.5)
    found: list[Method] = [
        Prune(ramp(last=0.5), every=2, score="snip"),
        Prune(ramp(last=0.5), every=2, pattern="channel", score="group" if averaged else "taylor"),
    ]
    if not averaged:
        found += [Share(bits=3, select="^0$"), Share(bits=3, start=0.5, exclude=["^0$"]), Quantize(6, 8)]
    judged = Adversarial(teacher, conditional=True, optimizer=partial(torch.optim.SGD, lr=0.1))
    return [*found, Distill(teacher, weight=0.5, balance="gradient_norm" if averaged else "fixed"), judged]


def together(teacher: nn.Module, *, channels: bool) -> list[Method]:
    """The families of the table, over those steps."""
    ramp = partial(Polynomial, end=0.5)
    structure: list[Method] = [Prune(ramp(last=0.5), every=2, pattern="channel")] if channels else []
    return [
        Prune(ramp(last=0.5), every=2),
        *structure,
        Share(bits=3, start=0.5),
        Quantize(6, 8),
        Distill(teacher, weight=0.5),
    ]


def learned(teacher: nn.Module) -> list[Method]:
    """Quantizers with parameters: some idle at first, some from the start, with masks below; layers that freeze."""
    return [
        Prune(Polynomial(last=0.5, end=0.5), every=2, score="movement"),
        Freeze(start=0.3, every=1),
        Quantize(4, 6, weights="lsq", activations="lsq_plus", start=0.4, exclude=["<last>"]),
        Quantize(2, 6, weights="ttq", activations="pact", select="^9$"),
        Distill(teacher, weight=0.5, hints=hints(), balance="uncertainty"),
    ]


def hints() -> dict[str, Hint]:
    """Terms with adapters, with a paraphraser that each rank teaches by its own data, and with banks."""
    return {
        "fit": Hint("5", loss="hint"),
        "factor": Hint("5", loss="FactorTransfer"),
        "crd": Hint("7", loss="CRD", weight=0.1, options={"negatives": 20}),
    }


def other_forms(teacher: nn.Module) -> list[Method]:
    """Layers in other forms, one of them fitted to what each rank sees first, under masks that regrow and rewind.

    The network is taught by itself too, and by a peer, and ends in its teacher's classifier.
    """
    return [
        ReuseClassifier(teacher),
        LowRank(rank=3, select="^9.projector$"),
        Slim("grouped", select="^3$"),
        Prune(0.5, every=2, score="random", dynamics=Regrow(), select="^9"),
        Prune(OneShot(last=0.5, at=0.5), every=1, dynamics=Rewind(0.2, shuffle=True), exclude=["^9"]),
        Distill(teacher, weight=0.5),
        Mutual(cases.conv_net()),
        OwnTeacher(["2"], deepest="5"),
    ]


@final
class FromData(Method):
    """Starts the weights from the data that a rank sees first, which is not what the other one sees."""

    stage: ClassVar[Stage] = Stage.STRUCTURE

    @torch.no_grad()
    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        mean = next(iter(batches))[0].mean()
        for parameter in model.parameters():
            parameter.add_(0.01 * mean)


class Mine(pl.LightningModule):
    """Somebody's own module."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch.inputs), batch.targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Ranges(pl.Callback):
    """Takes down the extra loss term of each step."""

    def __init__(self) -> None:
        self.terms: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        (distill,) = (m for m in trainer.lightning_module.modules() if isinstance(m, Distill))
        loss = distill.loss

        def noting(step: Step) -> dict[str, Tensor]:
            terms = loss(step)
            self.terms.append(float(terms["distill"].detach()))
            return terms

        distill.loss = noting  # type: ignore[method-assign]


def run(kind: str, folder: Path, ranks: int) -> dict[str, Any]:
    """Train with two ranks of 16 samples or one of 32; the state and the terms."""
    pl.seed_everything(0, verbose=False)
    make, channels = KINDS.get(kind, (cases.conv_net, False))
    teacher, net, bare = cases.conv_net(), make(), plain_net()
    seen = Ranges()
    callbacks: list[pl.Callback] = [seen]
    module: pl.LightningModule
    if kind == "callback":
        module = Mine(net)
        callbacks.append(Compress([FromData(), *methods(teacher)], model="net", example=torch.zeros(2, 1, 8, 8)))
    else:
        averaged = kind == "averaged"
        apart = [Mutual(plain_net()), OwnTeacher(["4"])]  # without a batch norm
        families = partial(together, channels=channels) if kind in KINDS else methods
        chosen = {"learned": learned, "forms": other_forms}.get(kind, families)(teacher)
        module = CompressionModule(
            bare if averaged else net,
            classification(10),
            [*methods(teacher, averaged=True), *apart] if averaged else [FromData(), *chosen],
            example=torch.zeros(2, 1, 8, 8),
            optimizer=partial(torch.optim.SGD, lr=0.1),
            channels_last=kind == "module",
        )
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if ranks > 1 else "auto",
        devices=ranks,
        max_epochs=2,
        limit_train_batches=STEPS // 2,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, datamodule=Digits(batch_size=32 // ranks))
    trainer.save_checkpoint(folder / f"{kind}{ranks}.ckpt")
    epochs = module.epochs if isinstance(module, CompressionModule) else []
    return {"state": module.state_dict(), "terms": seen.terms, "epochs": epochs}


def main(folder: Path) -> None:
    found = {kind: run(kind, folder, 2) for kind in ("module", "callback", "averaged", "learned", "forms", *KINDS)}
    rank = torch.distributed.get_rank()
    torch.save(found, folder / f"rank{rank}.pt")
    if rank == 0:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        torch.save(run("averaged", folder, 1), folder / "alone.pt")
    else:
        torch.distributed.barrier()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
