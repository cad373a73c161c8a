from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.core.method import Method, Stage, Step
from lightning_compress.core.schedule import Linear, Polynomial, learning_rate
from lightning_compress.core.task import classification
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.distill.teacher import Teacher
from lightning_compress.module import CompressionModule
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*many workers"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(48, 1, 8, 8, generator=GENERATOR)
TARGETS = torch.randint(4, (48,), generator=GENERATOR)
EXAMPLE = INPUTS[:2]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(96, 4),
    )


def loader(*, shuffle: bool = False, batch_size: int = 8) -> "DataLoader[tuple[Tensor, ...]]":
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=batch_size, shuffle=shuffle)


def module(methods: Iterable[Method] = (), net: nn.Module | None = None, **options: Any) -> CompressionModule:
    settings: dict[str, Any] = {"example": EXAMPLE, "optimizer": partial(SGD, lr=0.05, momentum=0.9)} | options
    return CompressionModule(net or network(), classification(4), list(methods), **settings)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**settings | options)


def keep(folder: Path, **options: Any) -> ModelCheckpoint:
    settings: dict[str, Any] = {"filename": "{epoch}", "save_top_k": -1, "save_on_train_epoch_end": True} | options
    return ModelCheckpoint(folder, **settings)


@final
class Spy(Method):
    """Has a learnable and a tap, and writes down what it is shown."""

    stage: ClassVar[Stage] = Stage.OBJECTIVE
    taps = ("0",)

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(()))
        self.prepared: list[Tensor] = []
        self.steps: list[Step] = []
        self.progress: list[float] = []

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.prepared = [next(iter(batches))[0] for _ in range(2)]

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.own], "lr": 0.5, "momentum": 0.0}]

    def task_weight(self, progress: float) -> float:
        return 0.5

    def loss(self, step: Step) -> dict[str, Tensor]:
        self.steps.append(step)
        return {"spy": self.own.square() * 1e-3}

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        self.progress.append(progress)
        return {"spy/progress": progress}


def test_each_method_sees_the_data_from_the_start() -> None:
    first, second = Spy(), Spy()
    second.loss = lambda step: {}  # type: ignore[method-assign]
    trainer(max_epochs=1).fit(module([first, second]), loader())
    for spy in (first, second):
        assert all(torch.equal(seen, INPUTS[:8]) for seen in spy.prepared)


def test_a_step_shows_all_there_is() -> None:
    spy = Spy()
    trained = module([spy])
    trainer(max_epochs=1).fit(trained, loader())
    step = spy.steps[0]
    assert torch.equal(step.inputs, INPUTS[:8])
    assert torch.equal(step.targets, TARGETS[:8])
    assert step.features["0"].shape == (8, 6, 6, 6)
    assert step.model is trained.model
    assert step.index is None
    assert [step.progress for step in spy.steps] == pytest.approx([i / 6 for i in range(6)])


def test_own_learnables_have_their_own_group_and_no_other() -> None:
    spy = Spy()
    run = trainer(max_epochs=1)
    run.fit(module([spy]), loader())
    first, own = run.optimizers[0].param_groups
    assert [id(p) for p in own["params"]] == [id(spy.own)]
    assert own["lr"] == 0.5
    assert id(spy.own) not in {id(p) for p in first["params"]}
    assert spy.own.item() == pytest.approx((1 - 2 * 0.5 * 1e-3) ** 6)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (4, 4)])
def test_methods_move_after_real_optimizer_steps_only(accumulate: int, steps: int) -> None:
    spy = Spy()
    trained = module([spy], scheduler=partial(learning_rate, schedule=Linear(first=1.0, last=0.0)))
    run = trainer(accumulate_grad_batches=accumulate)
    run.fit(trained, loader())
    assert run.global_step == trained.compressor.steps == steps
    assert spy.progress == pytest.approx([0.0, *((i + 1) / steps for i in range(steps))])
    assert run.optimizers[0].param_groups[0]["lr"] == 0.0


def test_progress_is_measured_against_the_horizon_that_is_given() -> None:
    spy = Spy()
    trainer(max_epochs=1).fit(module([spy], horizon_steps=60), loader())
    assert spy.progress[-1] == pytest.approx(0.1)


def test_progress_needs_an_end() -> None:
    with pytest.raises(ValueError, match="give the trainer max_epochs or max_steps, or horizon_steps here"):
        trainer(max_epochs=-1).fit(module([Spy()]), loader())


def test_the_curve_has_losses_figures_and_the_epochs_own_validation() -> None:
    trained = module([Spy()])
    trainer(max_epochs=4, check_val_every_n_epoch=2).fit(trained, loader(), loader())
    losses = {"train/loss", "train/task_loss", "train/spy", "train/spy/progress"}
    validated = {"val/loss", "val/accuracy"}
    assert [row.keys() - {"epoch"} for row in trained.epochs] == [losses, losses | validated] * 2
    assert [row["epoch"] for row in trained.epochs] == [0, 1, 2, 3]
    for row in trained.epochs:
        assert row["train/loss"] == pytest.approx(0.5 * row["train/task_loss"] + row["train/spy"], rel=1e-5)


def test_a_loss_that_is_not_a_number_stops_the_run() -> None:
    with pytest.raises(ValueError, match="training loss became NaN in epoch 0"):
        trainer().fit(module(optimizer=partial(SGD, lr=1e30)), loader())


@pytest.mark.parametrize(("val", "at_epoch_end"), [(False, True), (True, True), (True, False)])
def test_a_resume_is_exact_with_a_loader_that_draws_from_the_global_generator(
    tmp_path: Path, val: bool, at_epoch_end: bool
) -> None:
    for name, seed, start in (("whole", 0, None), ("resumed", 1, tmp_path / "whole" / "epoch=1.ckpt")):
        pl.seed_everything(seed, verbose=False)
        run = trainer(keep(tmp_path / name, save_on_train_epoch_end=at_epoch_end), max_epochs=4)
        loaders: dict[str, Any] = {
            "train_dataloaders": loader(shuffle=True),
            "val_dataloaders": loader() if val else None,
        }
        made = module([Prune(Polynomial(last=0.5), every=2), Quantize(8, 8)])
        run.fit(made, **loaders, ckpt_path=start, weights_only=True)
    whole, resumed = (torch.load(tmp_path / n / "epoch=3.ckpt", weights_only=True) for n in ("whole", "resumed"))
    # A checkpoint made by validation is older than the figures of that validation.
    skipped = () if at_epoch_end else ("val/loss", "val/accuracy")
    curves = [
        [{k: v for k, v in row.items() if k not in skipped} for row in c["epochs_seen"]] for c in (whole, resumed)
    ]
    assert curves[0] == curves[1]
    assert torch.equal(whole["rng"][0]["torch"], resumed["rng"][0]["torch"])
    for key, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]) if isinstance(value, Tensor) else True


def test_channels_last_and_compact_afterwards_are_the_same_numbers() -> None:
    found = []
    for channels_last in (False, True):
        pl.seed_everything(0, verbose=False)
        net = network()
        net[4] = nn.Identity()  # dropout draws in the order of the memory
        trained = module([Quantize(8, 8)], net, channels_last=channels_last)
        trainer(max_epochs=1).fit(trained, loader())
        compact = trained.finalize()
        assert all(tensor.is_contiguous() for tensor in compact.model.state_dict().values())
        found.append(compact.stored["0.weight"].value)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_a_tapped_model_finalizes_without_its_taps() -> None:
    spy = Spy()
    trained = module([spy])
    trainer(max_epochs=1).fit(trained, loader())
    compact = trained.finalize()
    kept = trained.compressor.features()["0"]
    compact.model(INPUTS[:3])
    assert trained.compressor.features()["0"] is kept
    trained.model(INPUTS[:3])
    assert trained.compressor.features()["0"].shape[0] == 3


def test_evaluation_reports_the_share_that_is_right() -> None:
    trained = module()
    (figures,) = trainer().test(trained, loader(batch_size=20), verbose=False)
    with torch.no_grad():
        outputs = trained.model.eval()(INPUTS)
    assert figures["test/accuracy"] == pytest.approx(float((outputs.argmax(1) == TARGETS).float().mean()))
    assert figures["test/loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, TARGETS)), rel=1e-5)


def test_an_empty_list_of_methods_is_plain_training() -> None:
    pl.seed_everything(0, verbose=False)
    net = network()
    net[4] = nn.Identity()
    trained = module([], net)
    by_hand = network()
    by_hand[4] = nn.Identity()
    by_hand.load_state_dict(net.state_dict())
    optimizer = SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for inputs, targets in loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    trainer().fit(trained, loader())
    for key, value in by_hand.state_dict().items():
        assert torch.equal(trained.model.state_dict()[key], value), key


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_alike_and_has_the_same_checkpoint() -> None:
    found = []
    for compiled in (False, True):
        pl.seed_everything(0, verbose=False)
        teacher, net = network(), network()
        net[4] = nn.Identity()  # a compiled dropout draws other numbers
        methods = [
            Prune(Polynomial(last=0.5, end=0.5), every=2),
            Prune(Polynomial(last=0.5, end=0.5), pattern="channel", every=2),
            Quantize(Linear(first=8, last=4), 8, start=0.2),
            Distill(Teacher(teacher, compile=compiled), weight=0.5, hints={"fit": Hint("2", loss="hint")}),
        ]
        trained = module(methods, net, compile_model=compiled)
        trainer().fit(trained, loader(), loader())
        found.append(trained)
    eager, fast = found
    assert eager.state_dict().keys() == fast.state_dict().keys()
    assert [row["train/loss"] for row in fast.epochs] == pytest.approx(
        [row["train/loss"] for row in eager.epochs], rel=1e-2
    )
    torch._dynamo.reset()
    compact = fast.finalize()
    with torch.no_grad():
        torch.testing.assert_close(compact.model(INPUTS), fast.model.eval()(INPUTS), rtol=1e-5, atol=1e-5)
