"""Whole compression through `Compress` of what somebody else may have: a segmentation, two inputs, a regression."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_compress.callback import Compress
from lightning_compress.core.inputs import call, rows
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.schedule import Polynomial
from lightning_compress.distill.method import Distill
from lightning_compress.export import runtime, verify
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run.api import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*many workers"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create"),
]
EPOCHS, BATCH, SAMPLES = 4, 32, 96


@final
class UNet(nn.Module):
    """Two classes for every pixel: two sizes, a skip connection, a transposed convolution on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
        self.rise = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.middle = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), nn.ReLU())
        self.grow = nn.Upsample(scale_factor=2)
        self.leave = nn.Sequential(nn.Conv2d(20, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1, H, W] to logits [B, 2, H, W]."""
        first = self.enter(images)
        second = self.down(first)
        middle = self.middle(torch.cat([self.rise(self.deep(second)), second], 1))
        logits: Tensor = self.leave(torch.cat([self.grow(middle), first], 1))
        return logits


@final
class Pair(nn.Module):
    """Whether two digits are the same one: a trunk that both go through."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
        self.compare = nn.Sequential(nn.Flatten(), nn.Linear(144, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Two images [B, 1, 8, 8] to logits [B, 2]."""
        logits: Tensor = self.compare(torch.cat([self.trunk(one), self.trunk(other)], 1))
        return logits


def regressor() -> nn.Module:
    """Ten measurements to one number."""
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))


@final
class Module(pl.LightningModule):
    """A module that knows nothing of compression: batches are (inputs, targets), whatever the inputs are."""

    def __init__(self, make: Callable[[], nn.Module], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.loss = make(), loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(call(self.net, batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _digits() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    images = torch.from_numpy(digits.images[: 2 * SAMPLES]).float().unsqueeze(1) / 16
    return images, torch.from_numpy(digits.target[: 2 * SAMPLES]).long()


def _segmented() -> Any:
    images = F.interpolate(_digits()[0][:SAMPLES], scale_factor=2)
    return images, (images[:, 0] > 0.5).long()


def _pairs() -> Any:
    images, labels = _digits()
    partner = torch.where(torch.arange(SAMPLES) % 2 == 0, labels[:SAMPLES], (labels[:SAMPLES] + 3) % 10)
    chosen = torch.stack([(labels == label).nonzero()[place % 5, 0] for place, label in enumerate(partner)])
    return (images[:SAMPLES], images[chosen]), (partner == labels[:SAMPLES]).long()


def _diabetes() -> Any:
    found = load_diabetes()
    targets = torch.from_numpy(found.target[:SAMPLES]).float()
    return torch.from_numpy(found.data[:SAMPLES]).float() * 20, ((targets - 152) / 77)[:, None]


@final
@dataclass(frozen=True)
class Case:
    """A network, its data (inputs, targets), its loss, and what a student learns from a teacher by."""

    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Callable[[Tensor, Tensor], Tensor]
    distill: str = "kl"
    by_name: tuple[str, ...] = ()


CASES = {
    "segmentation": Case(UNet, _segmented, F.cross_entropy),
    "two_inputs": Case(Pair, _pairs, F.cross_entropy),
    "two_inputs_by_name": Case(Pair, _pairs, F.cross_entropy, by_name=("one", "other")),
    "regression": Case(regressor, _diabetes, F.mse_loss, distill="mse"),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _inputs(case: Case) -> tuple[Any, Tensor]:
    inputs, targets = case.data()
    return (dict(zip(case.by_name, inputs, strict=True)) if case.by_name else inputs), targets


def _loader(case: Case) -> "DataLoader[Any]":
    inputs, targets = _inputs(case)
    samples = [(rows(inputs, torch.tensor(at)), targets[at]) for at in range(SAMPLES)]
    return DataLoader(samples, batch_size=BATCH, shuffle=True)  # type: ignore[arg-type]


def _trainer(folder: Path | None = None, *callbacks: pl.Callback, epochs: int = EPOCHS) -> pl.Trainer:
    keep = [ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)] if folder else []
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(keep),
        callbacks=[*callbacks, *keep],
    )


def _teacher(case: Case) -> nn.Module:
    pl.seed_everything(7, verbose=False)
    module = Module(case.make, case.loss)
    _trainer(epochs=2).fit(module, _loader(case))
    return module.net


def _methods(case: Case, teacher: nn.Module) -> list[Method]:
    return [
        Prune(Polynomial(last=0.5, end=0.5), every=2),
        Quantize(6, 8),
        Distill(teacher, weight=0.5, loss=case.distill),
    ]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return all(map(_same, left, right)) if isinstance(left, list) else bool(left == right)


def _deployed(case: Case, callback: Compress, folder: Path) -> Compact:
    """The packed file gives the outputs back bit for bit; ONNX Runtime agrees, also on batches of another size."""
    inputs, _ = _inputs(case)
    compact, again = callback.save(folder), load(folder / "model.lcz", case.make())
    with torch.no_grad():
        assert torch.equal(call(again, inputs), call(compact.model, inputs))
    session = runtime.session(folder / "model.onnx")
    for number in (1, 50):
        found = verify.compare(compact.model, session, rows(inputs, slice(number)))
        verify.check(found, verify.tolerance(compact.model))
    return compact


@EACH
def test_all_together_resumed_and_deployed(case: Case, tmp_path: Path) -> None:
    teacher, modules, callbacks = _teacher(case), [], []
    for seed, start in ((0, None), (1, tmp_path / "0" / "epoch=1.ckpt")):
        pl.seed_everything(seed, verbose=False)
        modules.append(Module(case.make, case.loss))
        callbacks.append(Compress(_methods(case, teacher), model="net"))
        run = _trainer(tmp_path / str(seed), callbacks[-1])
        run.fit(modules[-1], _loader(case), ckpt_path=start, weights_only=True if start else None)
    saved = [torch.load(tmp_path / str(seed) / "epoch=3.ckpt", weights_only=True) for seed in (0, 1)]
    for key in ("state_dict", "optimizer_states", "rng", "global_step"):
        assert _same(saved[0][key], saved[1][key]), key
    compact = _deployed(case, callbacks[1], tmp_path)
    weights = [stored for name, stored in compact.stored.items() if name.endswith("weight") and stored.bits == 6]
    assert len(weights) >= 3
    zeros = sum(int((stored.value == 0).sum()) for stored in weights) / sum(s.value.numel() for s in weights)
    assert zeros >= 0.49
    inputs, _ = _inputs(case)
    with torch.no_grad():
        torch.testing.assert_close(
            call(compact.model, inputs), call(modules[1].net.eval(), inputs), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["segmentation", "two_inputs"])
def test_channels_are_really_removed(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    teacher = _teacher(case)
    pl.seed_everything(0, verbose=False)
    module = Module(case.make, case.loss)
    half = Prune(Polynomial(last=0.5, end=0.5), pattern="channel", every=2)
    callback = Compress([half, Quantize(8, 8), Distill(teacher, weight=0.5)], model="net")
    _trainer(None, callback, epochs=2).fit(module, _loader(case))
    compact, (inputs, _) = _deployed(case, callback, tmp_path), _inputs(case)
    widths = {name: stored.value.shape[:2] for name, stored in compact.stored.items() if stored.value.dim() == 4}
    if name == "segmentation":  # both sides of each concatenation, and the transposed convolution between
        assert widths["enter.0.weight"] == (4, 1)
        assert widths["rise.weight"] == (8, 6)
        assert widths["middle.0.weight"] == (6, 12)
        assert widths["leave.0.weight"] == (4, 10)
        assert widths["leave.2.weight"] == (2, 4)
    else:
        assert widths == {"trunk.0.weight": (4, 1), "trunk.2.weight": (4, 4)}
        assert compact.stored["compare.1.weight"].value.shape == (12, 72)
    with torch.no_grad():  # the masked network, which was trained, gives the same
        torch.testing.assert_close(call(compact.model, inputs), call(module.net.eval(), inputs), atol=1e-4, rtol=1e-4)


def test_a_regression_is_told_what_to_learn_by() -> None:
    case = CASES["regression"]
    callback = Compress([Distill(case.make())], model="net")
    with pytest.raises(ValueError, match=r"got the shape \[32, 1\]; for numbers that are not logits .*write loss=mse"):
        _trainer(None, callback).fit(Module(case.make, case.loss), _loader(case))


def test_a_segmentation_learns_from_its_teacher_pixel_by_pixel() -> None:
    case = CASES["segmentation"]
    inputs, targets = _inputs(case)
    student, teacher, seen = case.make(), case.make(), {}

    class Keep(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, _: object) -> None:
            seen.update({name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None})

    module = Module(lambda: student, case.loss)
    twin, samples = copy.deepcopy(student), [(inputs[at], targets[at]) for at in range(8)]
    whole: DataLoader[Any] = DataLoader(samples, batch_size=8)  # type: ignore[arg-type]
    _trainer(None, Compress([Distill(teacher, weight=0.7)], model="net"), Keep(), epochs=1).fit(module, whole)
    ours, theirs = twin(inputs[:8]), teacher(inputs[:8])
    log = (theirs / 4).log_softmax(1) - (ours / 4).log_softmax(1)
    distill = 16 * ((theirs / 4).softmax(1) * log).sum(1).mean()
    (0.3 * F.cross_entropy(ours, targets[:8]) + 0.7 * distill).backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_that_something_else_computes_are_refused_before_training(norm: Callable[..., nn.Module]) -> None:
    case = Case(lambda: nn.Sequential(norm(nn.Linear(10, 4)), nn.Linear(4, 1)), _diabetes, F.mse_loss)
    callback = Compress([Prune(0.5, exclude=["^0$"])], model="net")
    with pytest.raises(ValueError, match=r"Norm computes '0\.weight': .*remove_parametrizations\(layer"):
        _trainer(None, callback).fit(Module(case.make, case.loss), _loader(case))
