"""`Compress`: the same methods on a LightningModule that somebody already has."""

from collections.abc import Callable, Sequence
from typing import Any, final

import pytorch_lightning as pl
from torch import Tensor, nn

from lightning_compress.core import surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact, Method, Step
from lightning_compress.core.rng import rng_state, set_rng_state

Unpack = Callable[[Any], tuple[Any, ...]]


def _as_is(batch: Any) -> tuple[Any, ...]:
    return tuple(batch)


@final
class Compress(pl.Callback):
    """Compresses the submodule `model` of the LightningModule being trained, which stays as it was written.

    `unpack` turns a batch into `(inputs, targets)`, optionally with a sample index and view; the default takes a batch
    that is such a tuple. `example` is one batch of inputs, needed by methods that trace the model (channel pruning,
    batch-norm folding); the default takes it from the training data. The methods' terms are added to whatever loss the
    module returns, and their learnables to its first optimizer. After training, `finalize()` gives the deployed model.

    Raises:
        ValueError: the module has no such submodule, or the methods are out of order.

    >>> Compress([], model="net").model
    'net'
    """

    def __init__(
        self,
        methods: Sequence[Method],
        *,
        model: str = "model",
        unpack: Unpack = _as_is,
        example: Any = None,
    ) -> None:
        self.compressor = Compressor(methods)
        self.model = model
        self.unpack = unpack
        self.example = example
        self._student: nn.Module | None = None
        self._batch: tuple[Any, ...] = ()
        self._outputs: Any = None
        self._seen_steps = 0
        self._rng: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach the methods before optimizers exist; their state joins the module's checkpoint."""
        if self._student is not None:
            return
        found = dict(pl_module.named_modules()).get(self.model)
        if found is None:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(f"Compress: the module has no submodule {self.model!r}; it has {names}")
        if self.example is None and stage == "fit":
            self.example = self._first_inputs(trainer)
        self._student = self.compressor.attach(found, self.example)
        surgery.replace(pl_module, self.model, self._student)
        pl_module.add_module("lightning_compress", self.compressor)
        self._student.register_forward_hook(self._keep_outputs)

    def _first_inputs(self, trainer: pl.Trainer) -> Any:
        source = trainer.fit_loop._data_source
        loader = source.dataloader()
        return self.unpack(next(iter(loader)))[0]

    def _keep_outputs(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._outputs = output

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the methods' learnables to the optimizer, fix the horizon, show the methods data."""
        for group in self.compressor.param_groups():
            self._add_group(trainer, group)
        if trainer.estimated_stepping_batches == float("inf"):
            raise ValueError("progress needs a length: give the trainer max_epochs or max_steps")
        self.compressor.horizon = int(trainer.estimated_stepping_batches)
        self._seen_steps = trainer.global_step
        if not self.compressor.prepared:
            trainer.fit_loop.setup_data()
            loader: Any = trainer.train_dataloader
            moved = (self.unpack(trainer.strategy.batch_to_device(batch)) for batch in loader)
            assert self._student is not None
            self.compressor.prepare(self._student, moved)

    def _add_group(self, trainer: pl.Trainer, group: dict[str, Any]) -> None:
        trainer.optimizers[0].add_param_group(group)
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            if getattr(scheduler, "optimizer", None) is trainer.optimizers[0] and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs.append(trainer.optimizers[0].param_groups[-1]["lr"])
                if hasattr(scheduler, "lr_lambdas"):
                    scheduler.lr_lambdas.append(scheduler.lr_lambdas[-1])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Random generators go on where the checkpoint left them."""
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch for the methods' terms."""
        self._batch = self.unpack(batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Weigh the loss and add the methods' terms, in place."""
        assert self._student is not None
        inputs, targets, *place = self._batch
        step = Step(
            inputs=inputs,
            targets=targets,
            outputs=self._outputs,
            task_loss=loss,
            progress=self.compressor.progress,
            model=self._student,
            index=place[0] if place else None,
            view=place[1] if len(place) > 1 else None,
            features=self.compressor.features(),
        )
        terms = self.compressor.loss(step)
        loss.mul_(self.compressor.task_weight())
        for name, term in terms.items():
            loss.add_(term)
            pl_module.log(f"train/{name}", term.detach(), on_step=False, on_epoch=True)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Let the methods move where an optimizer step was made."""
        if trainer.global_step > self._seen_steps:
            self._seen_steps = trainer.global_step
            assert self._student is not None
            self.compressor.update(self._student)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Random generators belong to the checkpoint."""
        checkpoint["rng"] = rng_state()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep them until training starts."""
        self._rng = checkpoint.get("rng")

    def finalize(self) -> Compact:
        """The deployed model.

        Raises:
            ValueError: nothing was trained yet.
        """
        if self._student is None:
            raise ValueError("Compress.finalize: nothing to finalize; call trainer.fit with this callback first")
        return self.compressor.finalize(self._student, self.example)
