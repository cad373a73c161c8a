"""The table: one row per configuration of a method, and every subset of the families, with what each asks for."""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.core.max_norm import MaxNorm
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.schedule import Cosine, Linear, OneShot, Polynomial, Rounds, Steps, learning_rate
from lightning_compress.core.task import classification
from lightning_compress.data.digits import Digits
from lightning_compress.distill.adversarial import Adversarial
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.distill.mutual import Mutual
from lightning_compress.distill.own import OwnTeacher
from lightning_compress.distill.reuse import ReuseClassifier
from lightning_compress.distill.teacher import Teacher
from lightning_compress.lowrank.method import LowRank
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.models.shared_trunk import SharedTrunk
from lightning_compress.module import CompressionModule
from lightning_compress.prune.dynamics import Rewind, Soft
from lightning_compress.prune.method import Prune
from lightning_compress.prune.penalty import GroupLasso
from lightning_compress.prune.regrow import Regrow
from lightning_compress.quantize.freeze import Freeze
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.mixed import BayesianBits
from lightning_compress.quantize.sensitivity import Sensitivity
from lightning_compress.share.method import Share
from lightning_compress.share.tie import Tie
from lightning_compress.slim.method import Slim
from tests.contract import nets
from tests.prune.graphs import Layer

EPOCHS, BATCHES = 4, 6
#: What a network with several heads is asked of a digit.
HEADS = {"digit": None, "parity": [0, 1] * 5}
# What a checkpoint must reproduce to the last bit; the rest of it holds paths and Lightning's version.
EXACT = ("state_dict", "optimizer_states", "lr_schedulers", "epochs_seen", "rng", "global_step")


def conv_net() -> nn.Module:
    """Two convolutions with batch norm, dropout and a linear layer on 1x8x8 inputs."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(48, 10),
    )


def mlp() -> nn.Module:
    """Three linear layers with dropout on 1x8x8 inputs."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)
    )


def words() -> nn.Module:
    """A layer of a transformer that takes the rows of a 1x8x8 input for words."""
    return nn.Sequential(
        nn.Flatten(1, 2), nn.Linear(8, 16), Layer("apart", 16, 4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10)
    )


class Recurrent(nn.Module):
    """Takes the rows of a 1x8x8 input for time steps, read both ways by two layers of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2)
        self.head = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, [batch, 10]."""
        outputs: Tensor = self.head(self.lstm(images.flatten(1, 2))[0].mean(1))
        return outputs


def residual() -> nn.Module:
    """Four residual blocks that may go, and two that may not, on 1x8x8 inputs."""
    return ResNetCIFAR(14, in_channels=1, width=0.25)


def deep_net() -> nn.Module:
    """Two convolutions that are alike, each with a batch norm of its own, on 1x8x8 inputs."""
    block = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        *block,
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def shared() -> nn.Module:
    """The convolutions of `conv_net` with two heads."""
    net = conv_net()
    assert isinstance(net, nn.Sequential)
    return SharedTrunk(net[:-1], {"parity": nn.Linear(48, 2), "digit": nn.Linear(48, 10)})


@functools.cache
def _teacher(net: Callable[[], nn.Module] = conv_net) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        return net()


def _prune(**options: Any) -> Prune:
    return Prune(Polynomial(last=0.6, end=0.5), every=2, **options)


def _channel(**options: Any) -> Prune:
    return Prune(Polynomial(last=0.5, end=0.5), pattern="channel", every=2, **options)


def _share() -> Share:
    return Share(bits=4, start=0.5)


def _quantize() -> Quantize:
    return Quantize(6, 8)


def _distill() -> Distill:
    return Distill(_teacher(), weight=0.5)


def _hints(*, balance: str = "fixed", **hints: Hint) -> Distill:
    return Distill(_teacher(), weight=0.5, hints=hints, balance=balance)


@dataclass(frozen=True)
class Case:
    """A list of methods and what its finalized model must show; sparsity is per layer unless `overall`.

    Bits that are chosen from `choices`, layer by layer, are at most `weight_bits` and `activation_bits`. Of the hidden
    layers those lose channels whose names `cut` is found in.
    """

    build: Callable[[], Sequence[Method]]
    net: Callable[[], nn.Module] = conv_net
    sparsity: float | None = None
    overall: bool = False
    channels: float | None = None
    clusters: int | None = None
    length: int = 1
    weight_bits: int = 32
    activation_bits: int = 32
    full_range: bool = True
    choices: tuple[int, ...] = ()
    cut: str = ""


ROWS: dict[str, Case] = {
    "lowrank": Case(lambda: [LowRank(share=0.4)]),
    "lowrank-prune-share-quantize-distill": Case(
        lambda: [LowRank(share=0.4, exclude=["^0$"]), _prune(), _share(), _quantize(), _distill()],
        sparsity=0.6,
        clusters=16,
        weight_bits=6,
        activation_bits=8,
    ),
    "lowrank-cp-spatial-quantize-lsq": Case(
        lambda: [
            LowRank(rank=3, form={"^0": "spatial", "^3": "cp"}),
            Quantize(4, 6, weights="lsq", activations="lsq", start=0.3),
        ],
        weight_bits=4,
        activation_bits=6,
        full_range=False,
    ),
    "lowrank-lstm-prune-share-quantize-distill": Case(
        lambda: [LowRank(rank=4), _prune(), _share(), _quantize(), _distill()],
        Recurrent,
        sparsity=0.6,
        clusters=16,
        weight_bits=6,
        activation_bits=8,
        full_range=False,
    ),
    "slim": Case(lambda: [Slim()]),
    "slim-grouped-prune-quantize": Case(
        lambda: [Slim("grouped", exclude=["^0$"]), _prune(), _quantize()],
        sparsity=0.6,
        weight_bits=6,
        activation_bits=8,
    ),
    "tie-prune-share-distill": Case(
        lambda: [Tie(["^[25]$"]), _prune(), _share(), _distill()], deep_net, sparsity=0.6, clusters=16
    ),
    "reuse-channel-quantize": Case(
        lambda: [ReuseClassifier(_teacher(), features="5"), _channel(), _quantize()],
        channels=0.5,
        weight_bits=6,
        activation_bits=8,
    ),
    "reuse-linear-prune-share": Case(
        lambda: [ReuseClassifier(_teacher(mlp)), _prune(), _share()], mlp, sparsity=0.6, clusters=16
    ),
    "prune-uniform": Case(lambda: [_prune()], sparsity=0.6),
    "prune-overall": Case(lambda: [_prune(allocation="overall")], sparsity=0.6, overall=True),
    "prune-threshold": Case(lambda: [Prune(threshold=OneShot(last=0.5, at=0.3))]),
    "prune-channel": Case(lambda: [_channel()], channels=0.5),
    "prune-snip-lsq": Case(
        lambda: [Prune(0.6, score="snip", batches=2), Quantize(4, 6, weights="lsq", activations="lsq")],
        sparsity=0.6,
        weight_bits=4,
        activation_bits=6,
        full_range=False,
    ),
    "prune-movement": Case(
        lambda: [Prune(Polynomial(last=0.6, begin=0.1, end=0.5), every=2, score="movement")], sparsity=0.6
    ),
    "prune-2:4": Case(lambda: [Prune(Linear(last=0.5, end=0.5), pattern="2:4", every=2, exclude=["<first>"])]),
    "prune-block-erdos-renyi": Case(
        lambda: [_prune(pattern="2x1", allocation="erdos_renyi_kernel", score="lamp")], sparsity=0.6, overall=True
    ),
    "prune-head": Case(lambda: [Prune(Polynomial(last=0.5, end=0.5), pattern="head", every=2)], words),
    "prune-block-quantize": Case(
        lambda: [Prune(Polynomial(last=0.5, end=0.5), pattern="block", score="taylor", every=2), Quantize(6, 8)],
        residual,
        weight_bits=6,
        activation_bits=8,
    ),
    "prune-channel-macs": Case(
        lambda: [Prune(macs=Polynomial(first=1.0, last=0.4, end=0.5), pattern="channel", every=2), _quantize()],
        weight_bits=6,
        activation_bits=8,
    ),
    "prune-channel-taylor": Case(lambda: [_channel(score="taylor")], channels=0.5),
    "prune-channel-apoz": Case(
        lambda: [_channel(score="apoz"), _quantize()], channels=0.5, weight_bits=6, activation_bits=8
    ),
    "prune-rewind": Case(
        lambda: [Prune(Rounds(rate=0.3, rounds=2), every=1, dynamics=Rewind(to=0.1)), _quantize()],
        sparsity=0.51,
        weight_bits=6,
        activation_bits=8,
    ),
    "prune-regrow": Case(lambda: [Prune(0.6, score="random", every=4, dynamics=Regrow())], sparsity=0.6),
    "prune-soft": Case(lambda: [Prune(0.6, every=4, dynamics=Soft(until=0.7))], sparsity=0.6),
    "prune-channel-lasso": Case(lambda: [_channel(penalty=GroupLasso(Linear(last=0.01)))], channels=0.5),
    "share-layer": Case(lambda: [Share(clusters=12)], clusters=12),
    "share-global": Case(lambda: [Share(bits=3, scope="global", init="density", start=0.3)], clusters=8),
    "share-product": Case(lambda: [Share(clusters=6, length=3, init="kmeans++")], clusters=6, length=3),
    "quantize-w8a8": Case(lambda: [Quantize(8, 8)], weight_bits=8, activation_bits=8),
    "quantize-w4a4-tensor": Case(
        lambda: [
            Quantize(
                4, 4, weight_options={"per_channel": False}, activation_options={"observer": "min_max"}, freeze=0.5
            )
        ],
        weight_bits=4,
        activation_bits=4,
    ),
    "quantize-affine-weights": Case(lambda: [Quantize(5, None, weight_options={"symmetric": False})], weight_bits=5),
    "quantize-schedule": Case(
        lambda: [Quantize(Linear(first=8, last=3, end=0.8), 8, start=0.2)], weight_bits=3, activation_bits=8
    ),
    "quantize-groups": Case(
        lambda: [Quantize(4, 8, weight_options={"group_size": 4, "cover": "mse"})],
        weight_bits=4,
        activation_bits=8,
        full_range=False,
    ),
    "quantize-outputs": Case(lambda: [Quantize(8, 8, outputs=True)], weight_bits=8, activation_bits=8),
    "quantize-post-training": Case(
        lambda: [Quantize(4, 8, calibration="mse", equalize=True, adaround=30, correct_bias=True, freeze=0.0)],
        weight_bits=4,
        activation_bits=8,
    ),
    "quantize-lsq": Case(
        lambda: [Quantize(4, 6, weights="lsq", activations="lsq", start=0.3, freeze_batchnorm=0.7)],
        weight_bits=4,
        activation_bits=6,
        full_range=False,
    ),
    "quantize-lsq-plus-schedule": Case(
        lambda: [
            Quantize(
                Linear(first=8, last=3, end=0.8),
                Linear(first=8, last=4, end=0.8),
                weights="lsq_plus",
                activations="lsq_plus",
                weight_options={"per_channel": True},
                activation_options={"ewgs": 0.01},
            )
        ],
        weight_bits=3,
        activation_bits=4,
        full_range=False,
    ),
    "prune-freeze": Case(
        lambda: [
            _prune(),
            Freeze(stages=3, start=0.2, every=2),
            Quantize(Steps(values=[8, 4], at=[0.9]), 8, weights="lsq", activations="lsq"),
        ],
        sparsity=0.6,
        weight_bits=4,
        activation_bits=8,
        full_range=False,
    ),
    "prune-dorefa-pact": Case(
        lambda: [_prune(), Quantize(3, 4, weights="dorefa", activations="pact", decay=1e-3)],
        sparsity=0.6,
        weight_bits=3,
        activation_bits=4,
    ),
    "quantize-apot-dorefa": Case(
        lambda: [Quantize(4, 4, weights="apot", activations="dorefa", weight_options={"normalize": True})],
        weight_bits=4,
        activation_bits=4,
    ),
    "prune-ternary": Case(lambda: [_prune(), Quantize(2, None, weights="ternary")], sparsity=0.6, weight_bits=2),
    "prune-ttq": Case(lambda: [_prune(), Quantize(2, None, weights="ttq", lr=1e-3)], sparsity=0.6, weight_bits=2),
    "prune-binary": Case(lambda: [_prune(), Quantize(1, None, weights="binary")], sparsity=0.6, weight_bits=1),
    "prune-seed-affine": Case(
        lambda: [_prune(), Quantize(4, None, weights="seed_affine")], sparsity=0.6, weight_bits=4
    ),
    "share-lsq": Case(
        lambda: [_share(), Quantize(6, 8, weights="lsq", activations="pact")],
        clusters=16,
        weight_bits=6,
        activation_bits=8,
    ),
    "quantize-sensitivity": Case(
        lambda: [Quantize(Sensitivity(weight_bytes=900, probes=2), 8, weights="lsq")],
        weight_bits=8,
        activation_bits=8,
        full_range=False,
        choices=(2, 4, 8),
    ),
    "prune-bayesian-bits": Case(
        lambda: [_prune(), BayesianBits(0.1, fix=0.6, initial=0.0, gate_lr=0.1)],
        sparsity=0.6,
        weight_bits=8,
        activation_bits=8,
        full_range=False,
        choices=(2, 4, 8),
    ),
    "heads-channel-taylor-share-quantize-distill": Case(
        lambda: [
            _channel(score="taylor"),
            _share(),
            _quantize(),
            Distill(_teacher(shared), weight=0.5),
            Mutual(shared()),
            OwnTeacher(["trunk.2"], deepest="trunk.5"),
        ],
        shared,
        clusters=16,
        weight_bits=6,
        activation_bits=8,
    ),
    "channel-quantize-distill-hints": Case(
        lambda: [
            _channel(),
            _quantize(),
            _hints(
                balance="gradient_norm",
                attention=Hint("5", loss="attention", weight=Linear(first=10.0, last=0.0)),
                fit=Hint(["2", "5"], loss="hint"),
                crd=Hint("7", loss="CRD", weight=0.1, options={"negatives": 20}),
            ),
        ],
        channels=0.5,
        weight_bits=6,
        activation_bits=8,
    ),
    "share-lsq-distill-hints": Case(
        lambda: [
            _share(),
            Quantize(6, 8, weights="lsq", activations="lsq_plus"),
            _hints(
                margin=Hint("4", loss="margin", weight=1e-3),
                vid=Hint("5", loss="VID"),
                factor=Hint("5", loss="FactorTransfer"),
                review=Hint(["2", "5"], loss="Review", weight=0.1),
            ),
        ],
        clusters=16,
        weight_bits=6,
        activation_bits=8,
    ),
    "prune-quantize-distill-adversarial": Case(
        lambda: [
            _prune(),
            _quantize(),
            Distill(_teacher(), weight=0.5, balance="uncertainty"),
            Adversarial(_teacher(), layer="5", teacher_layer="2", conditional=True),
        ],
        sparsity=0.6,
        weight_bits=6,
        activation_bits=8,
    ),
    "prune-quantize-max-norm": Case(
        lambda: [_prune(), _quantize(), MaxNorm(0.5)], sparsity=0.6, weight_bits=6, activation_bits=8
    ),
    "distill-live": Case(lambda: [_distill()]),
    "distill-cached": Case(lambda: [Distill(Teacher(_teacher(), cache=True), weight=Linear(first=0.2, last=0.8))]),
    "mutual-prune-quantize": Case(
        lambda: [_prune(), _quantize(), Mutual([conv_net(), mlp()])],
        sparsity=0.6,
        weight_bits=6,
        activation_bits=8,
    ),
    "own-teacher-channel-quantize": Case(
        lambda: [_channel(), _quantize(), OwnTeacher(["2"], deepest="5")],
        channels=0.5,
        weight_bits=6,
        activation_bits=8,
    ),
}

_FAMILIES: dict[str, tuple[Callable[[], Method], dict[str, Any]]] = {
    "prune": (_prune, {"sparsity": 0.6}),
    "channel": (_channel, {"channels": 0.5}),
    "share": (_share, {"clusters": 16}),
    "quantize": (_quantize, {"weight_bits": 6, "activation_bits": 8}),
    "distill": (_distill, {}),
}


def _combined(names: Sequence[str], net: Callable[[], nn.Module] = conv_net) -> Case:
    asked = {key: value for name in names for key, value in _FAMILIES[name][1].items()}
    return Case(lambda: [_FAMILIES[name][0]() for name in names], net, **asked)


_NAMES = [names for size in range(len(_FAMILIES) + 1) for names in itertools.combinations(_FAMILIES, size)]
SUBSETS = {"+".join(names) or "none": _combined(names) for names in _NAMES}
_IN_PLACE = [names for names in _NAMES if "channel" not in names]
RECURRENT = {f"lstm:{'+'.join(n) or 'none'}": replace(_combined(n, Recurrent), full_range=False) for n in _IN_PLACE}
ALL = "prune+channel+share+quantize+distill"
KINDS = {
    kind: {
        f"{kind}:{'+'.join(names) or 'none'}": replace(_combined(names, net), full_range=False, cut=cut)
        for names in (_NAMES if kind in nets.IN_EVERY_SUBSET else _NAMES[-1:])
    }
    for kind, (net, cut) in (nets.IN_EVERY_SUBSET | nets.WITH_ALL_FAMILIES).items()
}
#: All families together, for each kind of network.
WHOLE = [ALL, "lstm:prune+share+quantize+distill", *(f"{kind}:{ALL}" for kind in KINDS)]
CASES = ROWS | SUBSETS | RECURRENT | {f"mlp:{ALL}": _combined(list(_FAMILIES), mlp)}
CASES |= {name: case for of_kind in KINDS.values() for name, case in of_kind.items()}


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """A test for each name, those of one name in one process, as a case is trained once in each; mixtures are slow."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(
                name, marks=[pytest.mark.xdist_group(name), *([pytest.mark.slow] if _is_mixture(name) else [])]
            )
            for name in names
        ],
    )


def _is_mixture(name: str) -> bool:
    """Three families or four; pairs and all together show most of what can go wrong. Or another row of a kind."""
    if name in RECURRENT or name.partition(":")[0] in KINDS:
        return name not in WHOLE
    return name == "share-lsq-distill-hints" or (name in SUBSETS and 3 <= name.count("+") + 1 < len(_FAMILIES))


@functools.cache
def _source() -> Digits:
    data = Digits(batch_size=32)
    data.setup()
    return data


def data(heads: dict[str, Any] | None = None) -> Digits:
    """A fresh data module over digits that are read once."""
    fresh = Digits(batch_size=32, heads=heads)
    fresh._parts, fresh._carved_test = _source()._parts, _source()._carved_test
    return fresh


def module(case: Case, *, seed: int = 0, **options: Any) -> CompressionModule:
    """A new module; the global generators are seeded with `seed`."""
    pl.seed_everything(seed, verbose=False)
    net = case.net()
    return CompressionModule(
        net,
        classification({"digit": 10, "parity": 2} if isinstance(net, SharedTrunk) else 10),
        case.build(),
        example=_source().example,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-2 if isinstance(net, nets.Reads) else 3e-3),
        scheduler=functools.partial(learning_rate, schedule=Cosine(first=1.0, last=0.1)),
        **options,
    )


def trainer(folder: Path | None = None, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A silent trainer of `EPOCHS` short epochs; with a folder it keeps a checkpoint of each epoch there."""
    keep = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    settings: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "limit_train_batches": BATCHES,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": folder is not None,
        "callbacks": [*callbacks, *([keep] if folder else [])],
        "default_root_dir": folder,
    }
    return pl.Trainer(**settings | options)


def fit(trainee: CompressionModule, used: pl.Trainer, resume: Path | None = None) -> CompressionModule:
    """Train; Lightning's advice on loaders of other kinds is ignored."""
    with warnings.catch_warnings():
        for advice in ("many workers", "is not empty", "LeafSpec", "dirpath has changed", "callbacks used to create"):
            warnings.filterwarnings("ignore", message=f".*{advice}.*")
        heads = HEADS if isinstance(trainee.model, SharedTrunk) else None
        used.fit(trainee, datamodule=data(heads), ckpt_path=resume, weights_only=True)
    return trainee


@functools.cache
def trained(name: str) -> CompressionModule:
    """The module of a case after training; not to be changed."""
    return fit(module(CASES[name]), trainer())


@functools.cache
def finalized(name: str) -> Compact:
    """The finalized model of a case; not to be changed."""
    return trained(name).finalize()


def checkpoint(folder: Path, epoch: int = EPOCHS - 1) -> Path:
    """Where the checkpoint of an epoch lies."""
    return folder / f"epoch={epoch}.ckpt"


def load(path: Path) -> dict[str, Any]:
    """What of a checkpoint must be exact."""
    loaded = torch.load(path, weights_only=True)
    return {key: loaded[key] for key in EXACT}


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Paths at which two nests of dicts, lists, tensors and numbers differ in any bit."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same = left.dtype == right.dtype and torch.equal(left, right)
        return [] if same else [where]
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [f"{where}/{key} is missing" for key in left.keys() ^ right.keys()]
        return keys + [d for k in left.keys() & right.keys() for d in differences(left[k], right[k], f"{where}/{k}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        return [d for i, (a, b) in enumerate(zip(left, right, strict=True)) for d in differences(a, b, f"{where}/{i}")]
    return [] if type(left) is type(right) and left == right else [f"{where}: {left!r} != {right!r}"]


def probe() -> Tensor:
    """Sixty-four validation inputs."""
    source = _source()
    return source.normalize(source.val_part.fetch(torch.arange(64)))


def state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with what is tied under its first name alone."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), name)
    return {name: tensor for name, tensor in model.state_dict().items() if name in first.values()}


def outputs(model: nn.Module) -> Tensor:
    """What a model in eval mode puts out for `probe`, heads side by side."""
    with torch.no_grad():
        return torch.cat(tree_leaves(model.eval()(probe())), dim=1)
