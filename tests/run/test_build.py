from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_compress.data.digits import Digits
from lightning_compress.distill.method import Distill
from lightning_compress.distill.mutual import Mutual
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run import build
from lightning_compress.run.targets import ConfigError

SMALL = {"_target_": "lightning_compress.models.small_conv.SmallConv", "width": 0.25}


def _never() -> nn.Module:
    raise AssertionError("no method asks for a teacher")


def test_the_data_takes_the_seed_of_the_run(configure: Any) -> None:
    assert build.data(configure("seed=3"))._batching.seed == 3
    assert build.data(configure("seed=3", "data.seed=4"))._batching.seed == 4


@pytest.mark.parametrize(
    ("overrides", "taught"),
    [
        (["distill=kl"], True),
        (["prune=gradual"], False),
        (["distill=kl", "prune=gradual", "phases=[{methods:[distill]},{methods:[prune]}]"], True),
        (["distill=kl", "prune=gradual", "phases=[{methods:[]},{methods:[prune]}]"], False),
    ],
)
def test_a_run_is_taught_if_one_of_its_phases_is(configure: Any, overrides: list[str], taught: bool) -> None:
    assert build.is_taught(configure(*overrides)) is taught


def test_the_model_learns_from_the_data_what_is_not_set() -> None:
    node = build.architecture({**SMALL, "_target_": "lightning_compress.models.mlp.mlp", "widths": [4]}, Digits())
    known = build.facts(Digits())
    assert known == {"num_classes": 10, "in_channels": 1, "image_size": 8, "num_features": 8}
    assert all(node[key] == known[key] for key in ("num_classes", "in_channels", "image_size"))
    assert build.architecture({**SMALL, "num_classes": 3}, Digits())["num_classes"] == 3
    assert "image_size" not in build.architecture(SMALL, Digits()), "its signature has no such argument"


def test_a_model_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other = (build.model(SMALL, seed=1).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "the run's own numbers are not touched"
    torch.rand(5)
    assert all(torch.equal(one[key], other[key]) for key in one)
    different = build.model(SMALL, seed=2).state_dict()
    assert not torch.equal(one["conv1.weight"], different["conv1.weight"])


def test_start_weights(tmp_path: Path) -> None:
    torch.save(build.model(SMALL, seed=7).state_dict(), tmp_path / "w.pt")
    made = build.model(SMALL, seed=1, weights=str(tmp_path / "w.pt")).state_dict()
    assert torch.equal(made["conv1.weight"], build.model(SMALL, seed=7).state_dict()["conv1.weight"])


def test_something_else_than_a_network() -> None:
    with pytest.raises(ConfigError, match=r"gave a Digits, expected a torch\.nn\.Module"):
        build.model({"_target_": "lightning_compress.data.digits.Digits"}, seed=0)


def test_methods_are_those_that_are_on_in_order(configure: Any) -> None:
    config = configure("prune=gradual", "quantize=affine")
    assert [type(method) for method in build.methods(config, None, _never)] == [Prune, Quantize]
    assert [type(method) for method in build.methods(config, ["quantize"], _never)] == [Quantize]
    assert build.methods(config, [], _never) == []
    assert build.methods(configure(), None, _never) == []


def test_only_who_wants_a_teacher_is_given_one(configure: Any) -> None:
    teacher = nn.Linear(2, 2)
    config = configure("prune=gradual", "distill=kl", "model@teacher.model=small_conv")
    prune, distill = build.methods(config, None, lambda: teacher)
    assert isinstance(prune, Prune)
    assert isinstance(distill, Distill)
    assert distill.teacher.model is teacher


def test_peers_differ_from_the_student_and_from_each_other(configure: Any) -> None:
    def peers(*overrides: str) -> list[Any]:
        (method,) = build.methods(
            configure("seed=3", "label_smoothing=0.1", "mutual=dml", *overrides), None, _never, module=Digits()
        )
        assert isinstance(method, Mutual)
        x, labels = torch.randn(3, 10), torch.tensor([1, 2, 3])
        assert torch.equal(method.task_loss(x, labels), F.cross_entropy(x, labels, label_smoothing=0.1)), "the run's"
        return list(method.peers)

    (like,) = peers()
    assert torch.equal(like.conv1.weight, build.model(SMALL, seed=4).state_dict()["conv1.weight"])
    named = [f"+model@methods.mutual.peers.{name}=small_conv" for name in ("a", "b")]
    one, other = peers(*named, "methods.mutual.peers.a.width=0.25", "methods.mutual.peers.b.width=0.25")
    assert torch.equal(one.conv1.weight, like.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    with pytest.raises(ConfigError, match=r"must give logits of shape \(2, 10\) for 2 inputs; got \(2, 4\)"):
        peers(named[0], "methods.mutual.peers.a.num_classes=4")


def test_phases(configure: Any) -> None:
    assert build.phases(configure()) == [
        {"methods": None, "epochs": 2, "keep_optimizer": False, "data": None, "name": "phase0"}
    ]
    config = configure("prune=gradual", "phases=[{methods:[]},{methods:[prune],epochs:5,keep_optimizer:true}]")
    assert build.phases(config) == [
        {"methods": [], "epochs": 2, "keep_optimizer": False, "data": None, "name": "phase0"},
        {"methods": ["prune"], "epochs": 5, "keep_optimizer": True, "data": None, "name": "phase1"},
    ]


class Pair(nn.Module):
    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs, inputs


def test_a_model_that_does_not_fit_the_data() -> None:
    build.check_fit(SmallConv(width=0.25), Digits())
    with pytest.raises(ConfigError, match=r"model Linear cannot take inputs of shape \[1, 8, 8\]: "):
        build.check_fit(nn.Linear(3, 10), Digits())
    with pytest.raises(ConfigError, match=r"must give logits of shape \(2, 10\) for 2 inputs; got \(2, 4\)"):
        build.check_fit(SmallConv(num_classes=4, width=0.25), Digits())
    with pytest.raises(ConfigError, match="got tuple"):
        build.check_fit(Pair(), Digits())


def test_rehearsal_looks_at_every_phase(configure: Any) -> None:
    phases = "phases=[{methods:[]},{methods:[prune]}]"

    def rehearse(*overrides: str) -> None:
        build.rehearse(configure(*overrides), lambda: SmallConv(width=0.25), Digits(), nn.Identity)

    rehearse("prune=gradual", "quantize=affine", "distill=kl", phases)
    with pytest.raises(ValueError, match="Prune matched no layer"):
        rehearse("prune=gradual", "methods.prune.select=nothing", phases)
    with pytest.raises(ValueError, match="temperature must be positive"):
        rehearse("distill=kl", "methods.distill.temperature=0")


def test_factories(configure: Any) -> None:
    optimizer, scheduler = build.factories(configure("optimizer=sgd", "optimizer.lr=0.5", "scheduler=cosine"))
    made = optimizer(nn.Linear(1, 1).parameters())
    assert isinstance(made, torch.optim.SGD)
    schedule = scheduler(made, 10)
    rates = []
    for _ in range(10):
        rates.append(made.param_groups[0]["lr"])
        made.step()
        schedule.step()
    assert rates[0] == 0.5
    assert rates[5] == pytest.approx(0.25)
    assert build.factories({**configure(), "scheduler": None})[1] is None


HEADS = {"digit": None, "parity": [0, 1] * 5}
TRUNK = {"_target_": "lightning_compress.models.shared_trunk.shared_trunk", "trunk": {**SMALL, "_partial_": True}}


def test_a_model_has_the_heads_that_the_data_asks_for() -> None:
    data = Digits(heads=HEADS)
    node = build.architecture(TRUNK, data)
    assert node["num_classes"] == {"digit": 10, "parity": 2}
    build.check_fit(build.model(node, seed=0), data)
    with pytest.raises(
        ConfigError, match=r"SmallConv has one output, and the data has the heads digit, parity: choose"
    ):
        build.architecture(SMALL, data)
    with pytest.raises(
        ConfigError, match=r"logits of shape \{'digit': \(2, 10\), 'parity': \(2, 2\)\} .*got \(2, 10\)"
    ):
        build.check_fit(SmallConv(width=0.25), data)
    other = build.model({**node, "num_classes": {"digit": 10, "odd": 2}}, seed=0)
    with pytest.raises(ConfigError, match=r"got \{'digit': \(2, 10\), 'odd': \(2, 2\)\}"):
        build.check_fit(other, data)
    with pytest.raises(ConfigError, match=r"logits of shape \(2, 10\)"):
        build.check_fit(other, Digits())


def test_several_heads_are_not_kept_of_a_teacher(configure: Any) -> None:
    config = configure("distill=kl_cached", "model@teacher.model=shared_trunk")
    with pytest.raises(ConfigError, match=r"data\.heads asks for several: choose distill=kl"):
        build.rehearse(config, nn.Identity, Digits(heads=HEADS), nn.Identity)
