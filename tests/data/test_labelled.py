"""The loaders under a real trainer: epoch order, resume, sharding."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_compress.data.augment import Jitter
from lightning_compress.data.batch import Batch
from lightning_compress.data.digits import Digits

# Lightning's own call of a part of torch that torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


class _Recorder(pl.LightningModule):
    """Learns nothing and remembers which samples it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 10)
        self.trained: list[tuple[int, list[int], float]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: Batch) -> Tensor:
        self.trained.append((self.current_epoch, batch.index.tolist(), batch.inputs.double().sum().item()))
        return nn.functional.cross_entropy(self.net(batch.inputs.flatten(1)), batch.targets)

    def validation_step(self, batch: Batch) -> None:
        self.validated.append(batch.index.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class _Save(pl.Callback):
    """Saves a checkpoint at one moment of the run."""

    def __init__(self, moment: str, step: int, path: Path) -> None:
        self.moment, self.step, self.path = moment, step, path

    def _save(self, moment: str, trainer: pl.Trainer) -> None:
        if moment == self.moment and trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save("batch", trainer)

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save("validation", trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._save("epoch", trainer)


def _fit(*callbacks: pl.Callback, checkpoint: Path | None = None, epochs: int = 3, **options: Any) -> _Recorder:
    module = _Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    data = Digits(batch_size=256, eval_batch_size=200, augment=[Jitter(1)], seed=5)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return module


STEPS = 5  # 1,079 digits in batches of 256


def test_each_epoch_has_its_own_order_of_all_samples() -> None:
    run = _fit()
    epochs = [[i for number, index, _ in run.trained if number == epoch for i in index] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(1079)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_validation_comes_in_stored_order_every_epoch() -> None:
    assert _fit(num_sanity_val_steps=0).validated == [list(range(200)), list(range(200, 359))] * 3


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("epoch", STEPS),
        ("validation", STEPS),
        ("batch", STEPS),
        ("batch", STEPS + 2),
        ("batch", 1),
        ("epoch", 2 * STEPS),
    ],
)
def test_resumed_run_sees_what_the_whole_run_saw(tmp_path: Path, moment: str, step: int) -> None:
    whole = _fit(_Save(moment, step, tmp_path / "saved.ckpt"))
    resumed = _fit(checkpoint=tmp_path / "saved.ckpt")
    assert resumed.trained == whole.trained[step:]


def test_two_ranks_share_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for part, count in (("train", 1079), ("val", 359), ("test", 359)):
        ranks = []
        for rank in range(2):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            loader = getattr(Digits(batch_size=100, eval_batch_size=100), f"{part}_dataloader")()
            ranks.append([batch.index for batch in loader])
        assert len(ranks[0]) == len(ranks[1])
        assert sorted(torch.cat([torch.cat(rank) for rank in ranks]).tolist()) == list(range(count))


def _rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([batch.index for batch in Digits().train_dataloader()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_train_part(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert sorted(torch.cat([torch.cat(rank) for rank in ranks]).tolist()) == list(range(1079))


@pytest.mark.parametrize(("views", "augment"), [(0, [Jitter(1)]), (4, [])])
def test_views_without_sense_are_refused(views: int, augment: list[Jitter]) -> None:
    with pytest.raises(ValueError, match="how many random views of each sample"):
        Digits(augment=augment, views=views)


def test_data_says_how_many_views_it_has() -> None:
    many: list[dict[str, Any]] = [{}, {"augment": [Jitter(1)]}, {"augment": [Jitter(1)], "views": 3}]
    assert [Digits(**settings).views for settings in many] == [0, None, 3]


def test_classes_left_out_are_missing_from_the_train_part_alone() -> None:
    whole, less = Digits(seed=3), Digits(seed=3, without=[3, 8])
    keep = (whole.train_part.labels != 3) & (whole.train_part.labels != 8)
    assert torch.equal(less.train_part.labels, whole.train_part.labels[keep])
    assert torch.equal(less.block(0, 0)[:1], less.normalize(whole.train_part.fetch(keep.nonzero()[:1, 0])))
    seen = torch.cat([batch.index for batch in less.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(int(keep.sum())))
    assert torch.equal(less.val_part.labels, whole.val_part.labels)
    assert torch.equal(less.test_part.labels, whole.test_part.labels)
    assert less.num_classes == 10


@pytest.mark.parametrize("without", [[10], [-1], list(range(10))])
def test_classes_left_out_must_be_some_of_the_data(without: list[int]) -> None:
    with pytest.raises(ValueError, match=r"without names classes by their numbers, 0 to 9"):
        _ = Digits(without=without).train_part
