"""`Compress`: the same methods on a LightningModule that somebody already has."""

import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lightning_compress.core import surgery
from lightning_compress.core.compressor import Batches, Compressor
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.rng import rng_states, set_rng_states
from lightning_compress.core.tap import Taps
from lightning_compress.export import files

_CHILD = "lightning_compress"
Unpack = Callable[[Any], tuple[Any, ...]]


def _as_is(batch: Any) -> tuple[Any, ...]:
    return tuple(batch)


@final
class Compress(pl.Callback):
    """Compresses the submodule `model` of the LightningModule being trained, which stays as it was written.

    `unpack` turns a batch into `(inputs, targets)`, optionally with a sample index and view; the default takes a batch
    that is such a tuple. `example` is one batch of inputs, needed by methods that trace the model (channel pruning,
    batch-norm folding); the default takes it from the training data. The methods' terms are added to whatever loss the
    module returns, and their learnables to its optimizer. Several inputs are a tuple or go by name. After training,
    `finalize()` gives the deployed model, and `save()` writes its files.

    Raises:
        ValueError: the methods are out of order; later: the module has no such submodule, optimizes by hand, or has a
            `Compress` already.

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
        self._base: nn.Module | None = None
        self._student: nn.Module | None = None
        self._taps: Taps | None = None
        self._batch: tuple[Any, ...] = ()
        self._seen_steps = 0
        self._rng: list[dict[str, Any]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach the methods before optimizers exist; their state joins the module's checkpoint."""
        if self._student is not None:
            return
        if not pl_module.automatic_optimization:
            raise ValueError(
                "Compress needs automatic optimization: with manual steps it cannot tell whose loss is whose"
            )
        if hasattr(pl_module, _CHILD):
            raise ValueError(
                "Compress: this module has been given to another Compress; finalize that one and go on there"
            )
        found = self._find(pl_module)
        if self.example is None and stage != "fit":
            raise ValueError(
                "Compress needs example=, one batch of inputs, where there is no training data to take it from"
            )
        if self.example is None:
            self.example = self.unpack(next(iter(trainer.fit_loop._data_source.dataloader())))[0]
        self._base = copy.deepcopy(found)
        self._student = self.compressor.attach(found, self.example)
        self._taps = Taps(self._student, [""])
        surgery.replace(pl_module, self.model, self._student)
        pl_module.add_module(_CHILD, self.compressor)

    def _find(self, pl_module: pl.LightningModule) -> nn.Module:
        modules: dict[str, nn.Module] = {name: module for name, module in pl_module.named_modules() if name}
        if self.model not in modules:
            children = ", ".join(name for name, _ in pl_module.named_children())
            near = difflib.get_close_matches(self.model, modules, n=1, cutoff=0.0)
            raise ValueError(
                f"Compress: the module has no submodule {self.model!r}, it has {children}; did you mean {near[0]!r}?"
            )
        return modules[self.model]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the methods' learnables to the optimizer, fix the horizon, show the methods data."""
        assert self._student is not None
        _add_groups(trainer, self.compressor.param_groups())
        if trainer.estimated_stepping_batches == float("inf"):
            raise ValueError("progress needs a length: give the trainer max_epochs or max_steps")
        self.compressor.horizon = int(trainer.estimated_stepping_batches)
        trainer.fit_loop.setup_data()
        loader: Any = trainer.train_dataloader
        move = trainer.strategy.batch_to_device
        batches = Batches(loader, lambda batch: self.unpack(move(batch)))
        self.compressor.prepare(self._student, batches, trains=trainer.max_epochs != 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where the checkpoint left off, inside an epoch too."""
        self._seen_steps = trainer.global_step
        # Asking for the number of steps made the loader before its state was there, and Lightning gives it none then.
        trainer.fit_loop._load_combined_loader_states()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Random generators go on where the checkpoint left them."""
        if self._rng is not None and not trainer.fit_loop.is_resuming:
            set_rng_states(self._rng)  # after a checkpoint made by validation the iterator is made once more

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch for the methods' terms."""
        self._batch = self.unpack(batch)
        self._rng = None

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Weigh the loss and add the methods' terms, in place.

        Lightning hands in the loss divided by the accumulated batches and, in fp16, scaled; the terms are too.
        """
        assert self._student is not None
        assert self._taps is not None
        if "" not in self._taps.features:
            raise ValueError(
                f"Compress: the training step did not call {self.model!r}; expected one forward pass of it"
            )
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = (scaler.get_scale() if scaler is not None else 1.0) / trainer.accumulate_grad_batches
        outputs = self._taps.features.pop("")
        terms = self.compressor.loss(self.compressor.step(self._batch, outputs, loss / factor, self._student))
        loss.mul_(self.compressor.task_weight())
        for name, term in terms.items():
            loss.add_(term * factor)
            # Each batch counts alike: the size of a batch of unknown form cannot be told.
            pl_module.log(f"train/{name}", term.detach(), on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

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
            figures = self.compressor.update(self._student, trainer.optimizers)
            named = {f"train/{name}": value for name, value in figures.items()}
            pl_module.log_dict(named, on_step=True, on_epoch=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Random generators belong to the checkpoint."""
        checkpoint["rng"] = rng_states()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the random generators back before anything asks for the data: making its iterator may draw."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._rng = checkpoint["rng"]
            set_rng_states(checkpoint["rng"])

    def save(self, folder: str | Path) -> Compact:
        """Write the deployed model as `model.lcz` and `model.onnx`, both checked, into `folder`; the model as well.

        `load(folder / "model.lcz", the base network)` gives it back.

        Raises:
            ValueError: nothing was trained yet, or the model cannot be written.
            ExportMismatchError: ONNX Runtime computes something else.
        """
        compact, home = self.finalize(), Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        example = tree_map(lambda each: each.cpu() if isinstance(each, Tensor) else each, self.example)
        assert self._base is not None
        files.write_packed(compact, self._base, example, home / files.PACKED, None)
        files.write_onnx(compact, example, home / files.ONNX)
        return compact

    def finalize(self) -> Compact:
        """The deployed model.

        Raises:
            ValueError: nothing was trained yet.
        """
        if self._student is None:
            raise ValueError("Compress.finalize: nothing to finalize; call trainer.fit with this callback first")
        return self.compressor.finalize(self._student, self.example)


def _add_groups(trainer: pl.Trainer, groups: list[dict[str, Any]]) -> None:
    """Give the optimizer the methods' groups, and take them out of the module's own group that they may be in."""
    if not groups:
        return
    optimizer = trainer.optimizers[0]
    own = {id(p) for group in groups for p in group["params"]}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in own]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for group in groups:
        optimizer.add_param_group(group)
        for scheduler in schedulers:
            _schedule_last_group(scheduler, optimizer)


def _schedule_last_group(scheduler: Any, optimizer: Optimizer) -> None:
    """Let a scheduler drive the group added last as it drives the first one."""
    first, added = optimizer.param_groups[0], optimizer.param_groups[-1]
    unknown = {key for key in first if key.endswith(("_lr", "_momentum"))} - set(added) - {"initial_lr"}
    if unknown:
        raise ValueError(
            f"Compress cannot add the methods' parameters under {type(scheduler).__name__}, which keeps "
            f"{', '.join(sorted(unknown))} of each group; use LambdaLR, CosineAnnealingLR or another that scales the lr"
        )
    base = added.setdefault("initial_lr", added["lr"])
    for part in _parts(scheduler):
        part.base_lrs.append(base)
        if hasattr(part, "lr_lambdas"):
            part.lr_lambdas.append(part.lr_lambdas[0])
    if first.get("initial_lr"):
        added["lr"] = base * first["lr"] / first["initial_lr"]  # a warm-up has begun


def _parts(scheduler: Any) -> Iterator[Any]:
    """The schedulers in a scheduler that scale each group's own learning rate."""
    if hasattr(scheduler, "base_lrs"):
        yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)
