"""`CompressionModule`: the LightningModule that trains one model under a list of methods."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact, Method, Step
from lightning_compress.core.rng import rng_state, set_rng_state
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
        self.epochs: list[dict[str, float]] = []
        self._factories = (optimizer, scheduler)
        self._horizon_steps = horizon_steps
        # A plain callable, not a submodule: a compiled module would rename every key of the checkpoint.
        self._call: tuple[Callable[..., Any]] = (torch.compile(self.model) if compile_model else self.model,)
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._rng: dict[str, Any] | None = None

    def forward(self, inputs: Any) -> Any:
        """The model's outputs."""
        return self._call[0](inputs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the model and the methods' own learnables, and the scheduler, stepped with it."""
        optimizer, scheduler = self._factories
        own = {id(p) for group in self.compressor.param_groups() for p in group["params"]}
        rest = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        built = optimizer([{"params": rest}, *self.compressor.param_groups()])
        if scheduler is None:
            return built
        steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler(built, steps), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Fix the horizon and show the methods data, unless the checkpoint says it was done."""
        if self._horizon_steps is None and self.trainer.estimated_stepping_batches == float("inf"):
            raise ValueError("progress needs a length: give the trainer max_epochs or max_steps, or horizon_steps here")
        self.compressor.horizon = self._horizon_steps or int(self.trainer.estimated_stepping_batches)
        if self.compressor.prepared or not len(self.compressor.methods):
            self.compressor.prepared = True
            return
        self.trainer.fit_loop.setup_data()
        loader = self.trainer.train_dataloader
        assert loader is not None, "fit has a training loader"
        self.compressor.prepare(self.model, (self._to_device(batch) for batch in loader))

    def _to_device(self, batch: Any) -> Any:
        return self.trainer.strategy.batch_to_device(batch)

    def on_train_epoch_start(self) -> None:
        """Random generators go on where the checkpoint left them."""
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Task loss times the methods' factor, plus their terms."""
        inputs, targets, *place = batch
        outputs = self(inputs)
        task_loss = self.task.loss(outputs, targets)
        step = Step(
            inputs=inputs,
            targets=targets,
            outputs=outputs,
            task_loss=task_loss,
            progress=self.compressor.progress,
            model=self.model,
            index=place[0] if place else None,
            view=place[1] if len(place) > 1 else None,
            features=self.compressor.features(),
        )
        terms = self.compressor.loss(step)
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
        self.compressor.update(self.model)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean losses."""
        means = {f"train/{name}": float(total) / self._count for name, total in self._sums.items()}
        if any(value != value for value in means.values()):
            raise ValueError(
                f"training loss became NaN in epoch {self.current_epoch}: lower the learning rate, or check the data"
            )
        self.log_dict(means)
        validated = {
            key: float(value) for key, value in self.trainer.callback_metrics.items() if key.startswith("val/")
        }
        self.epochs.append({"epoch": float(self.current_epoch), **means, **validated})
        self._sums, self._count = {}, 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics on the validation split."""
        self._evaluate("val", self.val_metrics, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and metrics on the test split."""
        self._evaluate("test", self.test_metrics, batch)

    def _evaluate(self, split: str, metrics: Any, batch: Any) -> None:
        inputs, targets, *_ = batch
        outputs = self(inputs)
        metrics.update(outputs, targets)
        named = {f"{split}/{name}": metric for name, metric in metrics.items()}
        options: dict[str, Any] = {"on_epoch": True, "on_step": False, "batch_size": len(targets)}
        self.log(f"{split}/loss", self.task.loss(outputs, targets), sync_dist=True, **options)
        self.log_dict(named, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Random generators and the curve so far belong to the checkpoint."""
        checkpoint["rng"] = rng_state()
        checkpoint["epochs_seen"] = self.epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep them until training starts."""
        self._rng = checkpoint.get("rng")
        self.epochs = list(checkpoint.get("epochs_seen", []))

    def finalize(self) -> Compact:
        """The deployed model; this module can be trained on."""
        return self.compressor.finalize(self.model, self.example)
