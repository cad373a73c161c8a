import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.data.digits import Digits
from lightning_compress.distill.ensemble import Ensemble
from lightning_compress.run import build
from lightning_compress.run.result import FILE
from lightning_compress.run.targets import ConfigError
from lightning_compress.run.teaching import load_teacher

Load = Callable[..., nn.Module]
NETWORKS = tuple(f"+model@teacher.members.{name}.model=small_conv" for name in ("first", "second"))
X = torch.randn(3, 1, 8, 8)


@pytest.fixture
def trained() -> list[dict[str, Any]]:
    """Configurations of the runs so far."""
    return []


@pytest.fixture
def load(configure: Any, tmp_path: Path, trained: list[dict[str, Any]]) -> Load:
    """The teacher of a configuration; runs keep their network as it begins."""

    def train(config: dict[str, Any], folder: Path) -> None:
        trained.append(config)
        folder.mkdir(parents=True)
        made = build.model(build.architecture(config["model"], Digits()), seed=config["seed"])
        torch.save(made.state_dict(), folder / "weights.pt")
        (folder / FILE).touch()

    return lambda *overrides: load_teacher(configure("distill=kl", *overrides), Digits(), tmp_path, train).eval()


def test_members_are_trained_apart_and_averaged(load: Load, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    found = load(*NETWORKS, "+teacher.members.first.share=3")
    assert [config["seed"] for config in trained] == [0, 1]
    assert [config["teacher"]["members"] for config in trained] == [{}, {}]
    first, second = (build.model(trained[0]["model"], seed=seed).eval() for seed in (0, 1))
    assert isinstance(found, Ensemble)
    torch.testing.assert_close(found(X).softmax(1), 0.75 * first(X).softmax(1) + 0.25 * second(X).softmax(1))
    load(*NETWORKS, "teacher.mean=logits")
    assert len(trained) == 2, "they are kept by what decides them"
    load("model@teacher.model=small_conv")
    assert len(trained) == 2, "the first one is what a single teacher is"
    assert len(list(tmp_path.glob("teacher-*"))) == 2


def test_a_member_may_be_trained_already(load: Load, trained: list[dict[str, Any]], tmp_path: Path) -> None:
    kept = build.model({"_target_": "lightning_compress.models.small_conv.SmallConv"}, seed=9).eval()
    torch.save(kept.state_dict(), tmp_path / "w.pt")
    found = load(*NETWORKS, f"+teacher.members.second.weights={tmp_path / 'w.pt'}", "teacher.mean=logits")
    assert len(trained) == 1
    first = build.model(trained[0]["model"], seed=0).eval()
    torch.testing.assert_close(found(X), (first(X) + kept(X)) / 2)


def test_members_teach_an_assistant(load: Load, trained: list[dict[str, Any]]) -> None:
    assistant = ["+model@teacher.assistants.one=small_conv", "teacher.assistants.one.width=0.5"]
    assert not isinstance(load(*NETWORKS, *assistant), Ensemble)
    taught = trained[2]
    assert taught["model"]["width"] == 0.5
    weights = [torch.load(m["weights"], weights_only=True) for m in taught["teacher"]["members"].values()]
    expected = [build.model(config["model"], seed=config["seed"]).state_dict() for config in trained[:2]]
    assert [state["fc.bias"].tolist() for state in weights] == [state["fc.bias"].tolist() for state in expected]
    load(*NETWORKS, *assistant)
    assert len(trained) == 3
    load(*NETWORKS, *assistant, "+teacher.members.second.share=2")
    assert len(trained) == 4, "an assistant goes by how it was taught"


def test_assistants_that_nothing_would_teach(load: Load) -> None:
    assistant = ["+model@teacher.assistants.one=small_conv", "distill=none", "reuse=simkd"]
    with pytest.raises(ConfigError, match="assistants are taught by distill or adversarial, and neither is on"):
        load(*NETWORKS, *assistant)


def test_either_a_teacher_or_members(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"leave teacher.model and teacher.weights away, or the members"):
        load(*NETWORKS, "model@teacher.model=small_conv")


@pytest.mark.parametrize(
    "wrong",
    ["share=0", "share=true", "weight=a.pt", "weights=3", "model=null"],
    ids=lambda text: text.partition("=")[0],
)
def test_what_a_member_may_be(configure: Any, wrong: str) -> None:
    with pytest.raises(
        ConfigError, match=r"teacher\.members must be names with mappings of a model, and maybe weights"
    ):
        configure(*NETWORKS, f"++teacher.members.first.{wrong}")


def test_a_teacher_that_several_runs_share_is_trained_once(configure: Any, tmp_path: Path) -> None:
    config = configure("distill=kl", "model@teacher.model=small_conv", f"teacher.folder={tmp_path}")
    began, go_on = threading.Event(), threading.Event()
    trained: list[str] = []

    def train(config: dict[str, Any], folder: Path) -> None:
        trained.append(threading.current_thread().name)
        began.set()
        assert go_on.wait(60)
        folder.mkdir()
        made = build.model(build.architecture(config["model"], Digits()), seed=config["seed"])
        torch.save(made.state_dict(), folder / "weights.pt")
        (folder / FILE).touch()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(load_teacher, config, Digits(), tmp_path / "a", train)
        assert began.wait(60)
        second = pool.submit(load_teacher, config, Digits(), tmp_path / "b", train)
        assert not wait([second], timeout=0.5).done, "it waits for the one that trains"
        go_on.set()
        networks = [future.result().eval() for future in (first, second)]
    assert len(trained) == 1
    torch.testing.assert_close(networks[0](X), networks[1](X))
