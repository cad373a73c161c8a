import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, OneCycleLR, SequentialLR
from torch.utils.data import DataLoader, Dataset

from lightning_compress.callback import Compress
from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Polynomial
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*many workers"),
    pytest.mark.filterwarnings("ignore:.*is not empty"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create"),
]
BATCHES = 5


class DictDigits(Dataset[dict[str, Tensor]]):
    """Digits as somebody else keeps them: a dict for each sample."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images = torch.from_numpy(digits.images[:80]).float().unsqueeze(1) / 8 - 1
        self.labels = torch.from_numpy(digits.target[:80]).long()

    def __len__(self) -> int:
        return 16 * BATCHES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"picture": self.images[index], "class": self.labels[index]}


SOURCE = DictDigits()
Scheduler = Callable[[Optimizer], LRScheduler]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )


class Mine(pl.LightningModule):
    """A module that knows nothing of compression."""

    def __init__(self, scheduler: Scheduler | None = None, *, only_net: bool = False) -> None:
        super().__init__()
        self.net, self.dropout = network(), nn.Dropout(0.1)
        self.scheduler, self.only_net = scheduler, only_net

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(self.dropout(batch["picture"])), batch["class"])
        self.log("loss", loss, batch_size=len(batch["class"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self.net(batch["picture"]), batch["class"]), batch_size=len(batch["class"]))

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        mine = self.net.parameters() if self.only_net else self.parameters()
        optimizer = torch.optim.SGD(mine, lr=0.05, momentum=0.9)
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}


@final
class Gain(Method):
    """A method with a learnable of its own: a number that is pulled to 2."""

    stage: ClassVar[Stage] = Stage.OBJECTIVE

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))
        self.progress: list[float] = []
        self.task_losses: list[float] = []

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.gain], "lr": 0.01, "momentum": 0.0}]

    def loss(self, step: Step) -> dict[str, Tensor]:
        self.task_losses.append(step.task_loss.item())
        return {"gain": (self.gain - 2.0).square()}

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        self.progress.append(progress)
        return {}


def teacher() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return network()


def methods() -> list[Method]:
    return [
        Prune(Polynomial(last=0.5, end=0.5), every=2),
        Prune(Polynomial(last=0.5, end=0.5), pattern="channel", every=2),
        Quantize(6, 8),
        Distill(teacher(), weight=0.5, hints={"fit": Hint("2", loss="hint")}),
        Gain(),
    ]


def compress(made: list[Method], **options: Any) -> Compress:
    return Compress(made, model="net", unpack=lambda batch: (batch["picture"], batch["class"]), **options)


def loader(*, shuffle: bool = True) -> "DataLoader[dict[str, Tensor]]":
    return DataLoader(SOURCE, batch_size=16, shuffle=shuffle)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**settings | options)


def keep(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


class Gradients(pl.Callback):
    """The gradients of the first optimizer step."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Optimizer) -> None:
        if not self.first:
            named = pl_module.named_parameters()
            self.first = {name: p.grad.clone() for name, p in named if p.grad is not None}


def batches(number: int) -> Iterator[dict[str, Tensor]]:
    for first in range(0, 16 * number, 16):
        yield {"picture": SOURCE.images[first : first + 16], "class": SOURCE.labels[first : first + 16]}


def by_hand(net: nn.Module, number: int) -> dict[str, Tensor]:
    """Gradients of 0.3 cross entropy + 0.7 distillation at temperature 4, mean over `number` batches."""
    guide = teacher().eval()
    for batch in batches(number):
        outputs = net(batch["picture"])
        soft = F.softmax(guide(batch["picture"]) / 4, dim=1)
        distill = 16 * (soft * (soft.log() - F.log_softmax(outputs / 4, dim=1))).sum(1).mean()
        ((0.3 * F.cross_entropy(outputs, batch["class"]) + 0.7 * distill) / number).backward()  # type: ignore[no-untyped-call]
    return {f"net.{name}": p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_are_those_of_the_sum_worked_by_hand(accumulate: int) -> None:
    module, seen = Mine(), Gradients()
    module.dropout.p = 0.0
    wanted = by_hand(copy.deepcopy(module.net), accumulate)
    run = trainer(compress([Distill(teacher(), weight=0.7), Gain()]), seen, accumulate_grad_batches=accumulate)
    run.fit(module, loader(shuffle=False))
    for name, gradient in wanted.items():
        torch.testing.assert_close(seen.first[name], gradient, rtol=1e-4, atol=1e-6)
    assert seen.first["lightning_compress.methods.1.gain"] == -4.0


def test_terms_are_scaled_with_the_loss_in_fp16() -> None:
    pl.seed_everything(0, verbose=False)  # half precision rounds some draws of the weights by more than others
    module, seen = Mine(), Gradients()
    module.dropout.p = 0.0
    wanted = by_hand(copy.deepcopy(module.net), 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(compress([Distill(teacher(), weight=0.7), Gain()]), seen, plugins=plugin).fit(
            module, loader(shuffle=False)
        )
    scale = {1.0, 1024.0}  # whether the gradients are seen before or after they are unscaled
    assert abs(float(seen.first["lightning_compress.methods.1.gain"]) / -4.0) in scale
    factor = float(seen.first["lightning_compress.methods.1.gain"]) / -4.0
    for name, gradient in wanted.items():
        error = (seen.first[name] / factor - gradient).norm() / gradient.norm()
        assert error < 0.05, name


def test_every_method_works_and_a_resumed_run_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    whole = Mine(lambda optimizer: CosineAnnealingLR(optimizer, 4 * BATCHES))
    callback = compress(methods())
    trainer(callback, keep(tmp_path / "whole")).fit(whole, loader(), loader(shuffle=False))

    pl.seed_everything(1, verbose=False)
    resumed = Mine(lambda optimizer: CosineAnnealingLR(optimizer, 4 * BATCHES))
    again = compress(methods())
    run = trainer(again, keep(tmp_path / "resumed"))
    run.fit(resumed, loader(), loader(shuffle=False), ckpt_path=tmp_path / "whole" / "epoch=1.ckpt", weights_only=True)
    saved = [torch.load(tmp_path / name / "epoch=3.ckpt", weights_only=True) for name in ("whole", "resumed")]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng", "global_step"):
        assert same(saved[0][key], saved[1][key]), key
    found = callback.finalize()
    assert found.stored.keys() == found.model.state_dict().keys()
    assert found.stored["0.weight"].value.shape == (4, 1, 3, 3)
    assert found.stored["3.weight"].bits == 6
    with torch.no_grad():
        torch.testing.assert_close(found.model(SOURCE.images), whole.net.eval()(SOURCE.images), rtol=1e-5, atol=1e-5)
    again.finalize()


def test_finalizing_inside_training_changes_nothing() -> None:
    class Finalize(pl.Callback):
        def __init__(self, callback: Compress) -> None:
            self.callback = callback

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            self.callback.finalize()

    states = []
    for extra in (False, True):
        pl.seed_everything(0, verbose=False)
        module, callback = Mine(), compress(methods())
        trainer(callback, *([Finalize(callback)] if extra else []), max_epochs=2).fit(module, loader())
        states.append(module.state_dict())
    assert same(*states)


def _warm_up(optimizer: Optimizer) -> LRScheduler:
    rise = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, 15)], milestones=[5])


@pytest.mark.parametrize("only_net", [False, True])
@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        lambda optimizer: LambdaLR(optimizer, lambda step: (step + 1) / 10),
        lambda optimizer: CosineAnnealingLR(optimizer, 20),
        _warm_up,
    ],
)
def test_learnables_join_the_optimizer_and_follow_its_schedule(scheduler: Scheduler | None, only_net: bool) -> None:
    class Rates(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[float, float]] = []

        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            first, last = trainer.optimizers[0].param_groups
            self.seen.append((first["lr"] / 0.05, last["lr"] / 0.01))

    gain, rates = Gain(), Rates()
    run = trainer(compress([gain]), rates)
    run.fit(Mine(scheduler, only_net=only_net), loader())
    _, added = run.optimizers[0].param_groups
    assert len(added["params"]) == 1
    assert added["params"][0] is gain.gain
    assert added["momentum"] == 0.0
    for user, own in rates.seen:
        assert own == pytest.approx(user, rel=1e-6, abs=1e-9)
    # Plain gradient descent on (gain - 2)^2 at these rates, by hand.
    wanted = 0.0
    for _, own in rates.seen:
        wanted -= 0.01 * own * 2 * (wanted - 2.0)
    assert gain.gain.item() == pytest.approx(wanted, rel=1e-5)
    assert gain.gain.item() > 0.05


def test_methods_move_only_after_real_optimizer_steps(tmp_path: Path) -> None:
    gain, callback = Gain(), None
    callback = compress([gain])
    run = trainer(callback, keep(tmp_path), accumulate_grad_batches=2)
    run.fit(Mine(), loader())
    assert run.global_step == 4 * 3  # five batches make two pairs and a rest
    assert callback.compressor.steps == run.global_step
    assert gain.progress == [0.0, *(step / 12 for step in range(1, 13))]  # the first one is of `prepare`
    resumed = Gain()
    run = trainer(compress([resumed]), keep(tmp_path / "resumed"), accumulate_grad_batches=2)
    run.fit(Mine(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True)
    assert resumed.progress == gain.progress[7:]


def test_the_task_loss_is_the_modules_own(tmp_path: Path) -> None:
    gain, module = Gain(), Mine()
    module.dropout.p = 0.0
    net = copy.deepcopy(module.net)
    run = trainer(compress([gain]), max_epochs=1, accumulate_grad_batches=BATCHES)
    run.fit(module, loader(shuffle=False))
    wanted = [F.cross_entropy(net(batch["picture"]), batch["class"]).item() for batch in batches(BATCHES)]
    assert gain.task_losses == pytest.approx(wanted, rel=1e-5)


def test_terms_and_figures_are_logged_and_a_learned_weight_learns() -> None:
    distill = Distill(teacher(), weight=0.7, balance="uncertainty")
    distill.balance.set_extra_state({"begun": True})  # so that its own start, all 1, is where it goes on from
    gain = Gain()
    run = trainer(compress([gain, distill]), max_epochs=1, limit_train_batches=1)
    run.fit(Mine(), loader())
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["train/gain"] == 4.0
    assert (logged["train/balance/task"], logged["train/balance/distill"]) == pytest.approx((0.3, 0.7))
    slopes = [0.3 * (0.5 - gain.task_losses[0]), 0.7 * (0.5 - logged["train/distill"] / 0.7)]
    assert distill.param_groups()[0]["params"][0].tolist() == pytest.approx([-0.05 * slope for slope in slopes])


def test_a_checkpoint_can_be_tested_in_a_new_module(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    module = Mine()
    run = trainer(compress(methods()), keep(tmp_path), max_epochs=1)
    run.fit(module, loader())
    (wanted,) = run.test(module, loader(shuffle=False), verbose=False)
    pl.seed_everything(3, verbose=False)
    fresh = compress(methods(), example=SOURCE.images[:2])
    (found,) = trainer(fresh).test(
        Mine(), loader(shuffle=False), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False, weights_only=True
    )
    assert found == wanted
    with pytest.raises(ValueError, match="Compress needs example="):
        trainer(compress(methods())).test(Mine(), loader(), verbose=False)


class _Manual(Mine):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class _Elsewhere(Mine):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        found: Tensor = self.net[-1](torch.zeros(1, 72)).sum()  # type: ignore[index]
        return found


@pytest.mark.parametrize(
    ("module", "model", "message"),
    [
        (Mine, "nett", "no submodule 'nett', it has net, dropout; did you mean 'net'"),
        (Mine, "", "no submodule ''"),
        (_Manual, "net", "Compress needs automatic optimization"),
        (_Elsewhere, "net", "the training step did not call 'net'"),
        (
            functools.partial(Mine, lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=20)),
            "net",
            "cannot add the methods' parameters under OneCycleLR, which keeps .*max_lr",
        ),
    ],
)
def test_what_cannot_be_compressed_says_why(module: Callable[[], Mine], model: str, message: str) -> None:
    callback = Compress([Gain()], model=model, unpack=lambda batch: (batch["picture"], batch["class"]))
    with pytest.raises(ValueError, match=message):
        trainer(callback, max_epochs=1).fit(module(), loader())


def test_two_callbacks_on_one_module_are_refused() -> None:
    module = Mine()
    trainer(compress([Gain()]), max_epochs=1).fit(module, loader())
    with pytest.raises(ValueError, match="given to another Compress"):
        trainer(compress([Gain()]), max_epochs=1).fit(module, loader())


def test_there_is_nothing_to_finalize_before_training() -> None:
    with pytest.raises(ValueError, match=r"call trainer\.fit"):
        compress([]).finalize()


def test_progress_needs_an_end() -> None:
    with pytest.raises(ValueError, match="give the trainer max_epochs or max_steps"):
        trainer(compress([Gain()]), max_epochs=-1).fit(Mine(), loader())


def test_without_an_epoch_what_is_there_is_quantized() -> None:
    module, callback = Mine(), compress([Quantize(8, 8, calibration="mse", correct_bias=True)])
    float_net = copy.deepcopy(module.net).eval()
    trainer(callback, max_epochs=0).fit(module, loader())
    compact = callback.finalize()
    assert callback.compressor.progress == 1.0
    assert compact.stored["6.weight"].bits == 8
    pictures = SOURCE.images[:16]
    with torch.no_grad():
        torch.testing.assert_close(compact.model(pictures), float_net(pictures), atol=0.05, rtol=0.05)
