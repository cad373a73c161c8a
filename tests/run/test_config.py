import functools
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from torch import nn

from lightning_compress.data.digits import Digits
from lightning_compress.run.config import CONF, PACKAGE, build, compose, shipped_folders
from lightning_compress.run.targets import ConfigError, nodes, signature

ROOT = PACKAGE.parent
GROUPS = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF)
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.yaml"))
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
#: What an option leaves to the user.
NEEDED = {
    "images": ["data.source=x"],
    "texts": ["data.source=x"],
    "layers": ["methods.tie.groups=[x]"],
    "classifiers": ["methods.own_teacher.taps=[x]"],
    "features": ["methods.adversarial.layer=x"],
    "timm": ["model.name=x"],
    "hf": ["model.name_or_config=x"],
}


def _binds(config: dict[str, Any]) -> int:
    """Every `_target_` can be called with the arguments that are written, and the missing ones have a source."""
    count = 0
    facts = {"num_classes": 2, "in_channels": 1, "image_size": 8, "vocab_size": 300}
    offered = {"seed": 0, **facts, "teacher": nn.Identity()}
    for _, node in nodes(config):
        known = signature(node)
        given = {key: value for key, value in node.items() if not key.startswith("_")}
        extra = {key: value for key, value in offered.items() if key in known and key not in given}
        bound = inspect.Signature(list(known.values()))
        if node.get("_partial_"):
            bound.bind_partial(**given)
        else:
            bound.bind(**given, **extra)
        count += 1
    return count


def test_there_is_something_to_compose() -> None:
    assert len(GROUPS) > 20
    assert len(EXPERIMENTS) >= 4
    assert len(SWEEPS) >= 1


@pytest.mark.parametrize("path", GROUPS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_of_every_group(path: Path) -> None:
    config = compose([f"{path.parent.name}={path.stem}", *NEEDED.get(path.stem, [])])
    assert _binds(config) >= 3


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_experiment(path: Path) -> None:
    name = str(path.relative_to(ROOT / "experiments").with_suffix(""))
    config = compose([f"experiment={name}"])
    assert config["name"] == name
    assert _binds(config) >= 4


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: str(path.stem))
def test_every_sweep(path: Path) -> None:
    study = yaml.safe_load(path.read_text())
    assert _binds(compose(study["base"])) >= 4
    for overrides in [study["teacher"], *study["baselines"].values()]:
        _binds(compose([*study["base"], *study["dense"], *overrides]))


def test_defaults() -> None:
    config = compose()
    assert config["methods"] == dict.fromkeys(
        [
            *("reuse", "tie", "lowrank", "slim", "prune", "share", "freeze", "quantize"),
            *("distill", "mutual", "own_teacher", "adversarial"),
        ]
    )
    of_teachers = {"epochs": 30, "assistants": {}, "members": {}, "mode": "eval", "bf16": False, "cache": False}
    assert config["teacher"] == of_teachers | dict.fromkeys(("model", "weights", "mean", "folder", "outputs"))
    assert config["wandb"]["name"] == "run"


def test_methods_come_in_stage_order_however_they_are_written() -> None:
    config = compose(["distill=kl", "quantize=affine", "freeze=profit", "share=kmeans", "prune=gradual"])
    assert [name for name, node in config["methods"].items() if node] == [
        *("prune", "share", "freeze", "quantize", "distill")
    ]


def test_plain_values_and_interpolations() -> None:
    config = compose(["epochs=7", "name=x", "model@teacher.model=resnet20", "teacher.model.width=2"])
    assert config["teacher"]["epochs"] == 7
    assert config["wandb"]["name"] == "x"
    assert config["teacher"]["model"]["width"] == 2


@pytest.mark.parametrize(
    ("overrides", "at", "value"),
    [
        (["model.width=0.5"], "model.width", 0.5),
        (["data.split_seed=3"], "data.split_seed", 3),
        (["optimizer.betas=[0.8,0.9]"], "optimizer.betas", [0.8, 0.9]),
        (["prune=gradual", "methods.prune.round_to=4"], "methods.prune.round_to", 4),
        (["prune=gradual", "methods.prune.sparsity.exponent=1"], "methods.prune.sparsity.exponent", 1),
        (["model@teacher.model=resnet20", "teacher.model.shortcut=B"], "teacher.model.shortcut", "B"),
        (["trainer.gradient_clip_val=1.0"], "trainer.gradient_clip_val", 1.0),
        (["model._target_=torch.nn.Linear", "model.in_features=2", "model.out_features=2"], "model.out_features", 2),
        (
            ["+methods.mine._target_=lightning_compress.prune.method.Prune", "methods.mine.threshold=1"],
            "methods.mine.threshold",
            1,
        ),
        (["allow=[fractions]", "model._target_=fractions.Fraction", "model.numerator=2"], "model.numerator", 2),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, list) else "",
)
def test_any_argument_is_reached_without_a_plus(overrides: list[str], at: str, value: Any) -> None:
    found = functools.reduce(lambda node, key: node[key], at.split("."), compose(overrides))
    assert found == value


def test_a_target_of_ones_own_decides_which_arguments_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no 'width' in torch\.nn\.Linear"):
        compose(["model._target_=torch.nn.Linear", "model.width=2"])


def test_the_command_line_is_stronger_than_groups_and_experiments() -> None:
    config = compose(["optimizer.lr=0.5", "experiment=mnist/lenet5_joint", "epochs=2", "optimizer=sgd"])
    assert config["optimizer"]["lr"] == 0.5
    assert config["epochs"] == 2
    assert config["teacher"]["epochs"] == 8


def _experiment(folder: Path, name: str, text: str) -> Path:
    file = folder / "experiments" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# @package _global_\n" + text)
    return folder


def test_experiments_from_a_folder_of_the_users(tmp_path: Path) -> None:
    text = "defaults:\n  - override /prune: gradual\nname: mine\nmethods:\n  prune:\n    every: 3\n"
    folder = _experiment(tmp_path / "it's my, folder", "topic/mine", text)
    config = compose(["experiment=topic/mine"], folders=[folder])
    assert config["name"] == "mine"
    assert config["methods"]["prune"]["every"] == 3
    assert config["methods"]["prune"]["sparsity"]["last"] == 0.8
    with pytest.raises(ConfigError, match="did you mean 'topic/mine'"):
        compose(["experiment=topic/mien"], folders=[folder])


def test_experiments_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_experiment(tmp_path, "here", "epochs: 5\n"))
    assert compose(["experiment=here"])["epochs"] == 5
    assert compose(["experiment=mnist/lenet5_dense"])["epochs"] == 12


def test_the_users_folder_comes_first(tmp_path: Path) -> None:
    folder = _experiment(tmp_path, "mnist/lenet5_dense", "epochs: 1\n")
    assert compose(["experiment=mnist/lenet5_dense"], folders=[folder])["epochs"] == 1
    assert shipped_folders([folder])[0] == folder
    with pytest.raises(ConfigError, match="has no folder experiments/ or sweeps/"):
        shipped_folders([tmp_path / "experiments"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 5\n", "no 'epoch' in the configuration: did you mean 'epochs'"),
        ("measure:\n  round: 5\n", "did you mean 'measure.rounds'"),
        ("model:\n  widht: 5\n", "no 'widht' in .*SmallConv .at model.: did you mean 'width'"),
        ("methods:\n  prune:\n    sparsity: 0.5\n", "methods must be"),
        ("defaults:\n  - override /prune: gradul\n", "did you mean 'gradual'"),
        ("model:\n  _target_: os.system\n", "'os.system' is not allowed"),
        ("name: [\n", "is not readable YAML: while parsing .*mine.yaml"),
    ],
)
def test_mistakes_in_a_file(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        compose(["experiment=mine"], folders=[_experiment(tmp_path, "mine", text)])


def test_build_offers_what_is_not_set() -> None:
    node = {"_target_": "lightning_compress.data.digits.Digits", "batch_size": 8}
    made = build(node, seed=5, unused=1)
    assert isinstance(made, Digits)
    assert made._batching.seed == 5
    assert build({**node, "seed": 6}, seed=5)._batching.seed == 6
    assert build({**node, "seed": None}, seed=5)._batching.seed == 5


def test_build_nested_and_partial() -> None:
    net = build({"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Linear", "in_features": 2,
                 "out_features": 3}]})  # fmt: skip
    assert net(torch.ones(1, 2)).shape == (1, 3)
    factory = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert factory(net.parameters()).param_groups[0]["lr"] == 0.5


def test_build_says_what_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match=r"cannot make torch\.nn\.Linear: TypeError: .*out_features"):
        build({"_target_": "torch.nn.Linear", "in_features": 2})
    with pytest.raises(ConfigError, match=r"cannot make torch\.nn\.Linear: RuntimeError: .*negative"):
        build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": -3})
    with pytest.raises(ConfigError, match=r"cannot make .*timm_model: ImportError: model=timm needs the timm library"):
        build({"_target_": "lightning_compress.models.load.timm_model", "name": "x", "num_classes": 2})
    schedule = {"_target_": "lightning_compress.core.schedule.Polynomial", "last": 1.5, "end": -1}
    with pytest.raises(ValueError, match="end") as raised:
        build({"_target_": "lightning_compress.prune.method.Prune", "sparsity": schedule})
    assert not isinstance(raised.value, ConfigError), "a message of ours passes as it is"


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": "false"},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "os.system", "command": "false"}]},
        {"_target_": "torch.nn.Sequential", "_args_": ["${oc.create:{_target_:os.system,command:false}}"]},
        {"_target_": "torch.nn.Sequential", "_args_": ["${oc.decode:'{_target_:os.system,command:false}'}"]},
        {"_target_": "${oc.env:HOME}"},
    ],
    ids=str,
)
def test_build_calls_nothing_hostile(node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.system", lambda command: pytest.fail("it was called"))
    with pytest.raises(ConfigError):
        build(node)


def test_an_escaped_interpolation_is_not_resolved_later() -> None:
    config = compose([r"+model.mean='\${oc.env:HOME}'", "model._target_=torch.nn.Linear", "~model.mean"])
    assert "mean" not in config["model"]
    hidden = compose([r"weights='\${oc.env:HOME}'"])["weights"]
    assert hidden == "${oc.env:HOME}"
    with pytest.raises(ConfigError, match="must not hold"):
        build({"_target_": "lightning_compress.data.vision.ImageData", "source": hidden})


def test_no_code_from_the_hub() -> None:
    node = {
        "_target_": "lightning_compress.models.huggingface.huggingface_model",
        "name_or_config": "x",
        "num_classes": 2,
    }
    with pytest.raises(ValueError, match="runs no code from the hub"):
        build({**node, "trust_remote_code": True})
