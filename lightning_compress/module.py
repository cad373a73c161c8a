"""`CompressionModule`: the LightningModule that trains one model under a list of methods."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_compress.core import moments
from lightning_compress.core.compiled import compiled
from lightning_compress.core.compressor import Batches, Compressor
from lightning_compress.core.inputs import arguments
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.rng import rng_states, set_rng_states
from lightning_compress.core.task import Task

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


@final
class CompressionModule(pl.LightningModule):
    """Trains `model` for `task` under `methods`, in one run.

    Batches are `(inputs, targets, index, view)`. `example` is one batch of inputs on the CPU; `optimizer` is called
    with parameter groups, `scheduler` with the optimizer and the number of steps, and is stepped after each optimizer
    step. `horizon_steps` is what progress is measured against (default: the trainer's own number of steps).

    Raises:
        ValueError: methods out of stage order, or a method that cannot attach.

    >>> from lightning_compress.core.task import classification
    >>> module = CompressionModule(nn.Linear(4, 2), classification(2), [], example=torch.ones(1, 4))
    >>> module(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        methods: Sequence[Method] = (),
        *,
        example: Any,
        optimizer: OptimizerFactory = torch.optim.Adam,
        scheduler: SchedulerFactory | None = None,
        horizon_steps: int | None = None,
        compile_model: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.compressor = Compressor(methods)
        self.model = self.compressor.attach(model, example)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.task = task
        self.example = example
        self.val_metrics = task.metrics()
        self.test_metrics = task.metrics()
        #: One row of figures for each epoch so far; `report`, if set, is told each as it is made.
        self.epochs: list[dict[str, float]] = []
        self.report: Callable[[dict[str, float]], None] | None = None
        #: What an optimizer before this one gathered, by the parameters' plain names; training goes on with it.
        self.moments: moments.Moments = {}
        self._factories = (optimizer, scheduler)
        self._horizon_steps = horizon_steps
        # A plain callable, not a submodule: a compiled module would rename every key of the checkpoint.
        self._call: tuple[Callable[..., Any]] = (compiled(self.model) if compile_model else self.model,)
        # Of the epoch under way: sums of the losses, steps in them, the methods' figures, validation's figures.
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._figures: dict[str, float] = {}
        self._validated: dict[str, float] = {}
        self._rng: list[dict[str, Any]] | None = None

    def forward(self, inputs: Any) -> Any:
        """The model's outputs."""
        args, named = arguments(inputs)
        return self._call[0](*args, **named)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the model and the methods' own learnables, and the scheduler, stepped with it."""
        if self._rng is not None:
            set_rng_states(self._rng)  # as early as this: making the data loader's iterator may draw
        optimizer, scheduler = self._factories
        own = {id(p) for group in self.compressor.param_groups() for p in group["params"]}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        built = optimizer([{"params": rest}, *self.compressor.param_groups()])
        if self.moments:
            moments.give(self.moments, built, self.model)
        if scheduler is None:
            return built
        steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler(built, steps), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Fix the horizon and show the methods data, unless the checkpoint says it was done."""
        if self._horizon_steps is None and self.trainer.estimated_stepping_batches == float("inf"):
            raise ValueError("progress needs a length: give the trainer max_epochs or max_steps, or horizon_steps here")
        self.compressor.horizon = self._horizon_steps or int(self.trainer.estimated_stepping_batches)
        self.trainer.fit_loop.setup_data()
        loader = self.trainer.train_dataloader
        assert loader is not None, "fit has a training loader"
        batches = Batches(loader, self.trainer.strategy.batch_to_device)
        self.compressor.prepare(self.model, batches, trains=self.trainer.max_epochs != 0)

    def on_train_start(self) -> None:
        """Go on inside the epoch where the checkpoint was made inside one."""
        # Asking for the number of steps made the loader before its state was there, and Lightning gives it none then.
        self.trainer.fit_loop._load_combined_loader_states()

    def on_train_epoch_start(self) -> None:
        """Random generators go on where the checkpoint left them."""
        if self._rng is not None and not self.trainer.fit_loop.is_resuming:
            set_rng_states(self._rng)  # after a checkpoint made by validation the iterator is made once more

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Task loss times the methods' factor, plus their terms."""
        self._rng = None
        inputs, targets, *_ = batch
        outputs = self(inputs)
        task_loss = self.task.loss(outputs, targets)
        terms = self.compressor.loss(self.compressor.step(batch, outputs, task_loss, self.model))
        loss = task_loss * self.compressor.task_weight()
        for term in terms.values():
            loss = loss + term
        self._note({"loss": loss, "task_loss": task_loss, **terms})
        return loss

    def _note(self, values: dict[str, Tensor]) -> None:
        """Sums for the epoch's means: cheaper than Lightning's per-step logging, which small nets feel."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._count += 1

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let the methods move after each optimizer step."""
        super().optimizer_step(*args, **kwargs)
        self._figures |= self.compressor.update(self.model, self.trainer.optimizers)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean losses, of all ranks, and the methods' figures."""
        means = torch.stack(list(self._sums.values())) / self._count
        means = torch.as_tensor(self.trainer.strategy.reduce(means, reduce_op="mean"))
        if means.isnan().any():
            raise ValueError(
                f"training loss became NaN in epoch {self.current_epoch}: lower the learning rate, or check the data"
            )
        figures = dict(zip(self._sums, means.tolist(), strict=True)) | self._figures
        named = {f"train/{name}": value for name, value in figures.items()}
        self.log_dict(named)
        self.epochs.append({"epoch": float(self.current_epoch), **named, **self._validated})
        if self.report is not None and self.trainer.is_global_zero:
            self.report(self.epochs[-1])
        self._sums, self._count, self._figures, self._validated = {}, 0, {}, {}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics on the validation split."""
        self._evaluate("val", self.val_metrics, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics on the test split."""
        self._evaluate("test", self.test_metrics, batch)

    def on_validation_end(self) -> None:
        """Keep the figures for the epoch's row."""
        if not self.trainer.sanity_checking:
            figures = self.trainer.callback_metrics
            self._validated = {key: float(value) for key, value in figures.items() if key.startswith("val/")}

    def _evaluate(self, split: str, metrics: Any, batch: Any) -> None:
        inputs, targets, *_ = batch
        outputs = self(inputs)
        metrics.update(outputs, targets)
        named = {f"{split}/{name}": metric for name, metric in metrics.items()}
        options: dict[str, Any] = {"on_epoch": True, "on_step": False, "batch_size": len(targets)}
        self.log(f"{split}/loss", self.task.loss(outputs, targets), sync_dist=True, **options)
        self.log_dict(named, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Random generators, the curve so far and the epoch under way belong to the checkpoint."""
        checkpoint["rng"] = rng_states()
        checkpoint["epochs_seen"] = self.epochs
        checkpoint["epoch_so_far"] = [self._sums, self._count, self._figures, self._validated]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back; the generators wait until training starts."""
        self._rng = checkpoint["rng"]
        self.epochs = list(checkpoint["epochs_seen"])
        self._sums, self._count, self._figures, self._validated = checkpoint["epoch_so_far"]

    def finalize(self) -> Compact:
        """The deployed model; this module can be trained on."""
        return self.compressor.finalize(self.model, self.example)
