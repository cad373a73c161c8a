from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.core.edits import replay
from lightning_compress.core.task import next_token
from lightning_compress.cost.macs import macs
from lightning_compress.data.digits import Digits
from lightning_compress.data.text_file import TextFile
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.models.text_lm import TextLM
from lightning_compress.run import api, build
from lightning_compress.run import config as config_of
from lightning_compress.run.ground import Ground, check
from lightning_compress.run.result import Result
from lightning_compress.run.rungs import Rungs
from lightning_compress.run.targets import ConfigError
from lightning_compress.run.teacher_outputs import data_digest
from lightning_compress.run.train import train
from lightning_compress.tracking import wandb

_DIGITS = "_target_:lightning_compress.data.digits.Digits"
PRETRAIN = f"{{name:pretrain,data:{{{_DIGITS},only:[0,1,2,3,4,5],batch_size:256}},epochs:2,methods:[]}}"
TRANSFER = (
    "data.only=[6,7,8,9]",
    "data.limit=100",
    "prune=gradual",
    "quantize=affine",
    f"phases=[{PRETRAIN},{{epochs:2,methods:[]}},{{epochs:2,methods:[prune,quantize]}}]",
)


class KilledError(RuntimeError):
    """What stands for the process being killed."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, configure: Any) -> tuple[Path, Result]:
    """Six digits, then the other four dense, then compressed, in one go."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    return folder, train(configure(*TRANSFER, "evaluate_test=true"), folder)


def test_each_phase_has_its_data_and_the_last_ones_decides(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    first, last = Digits(only=[0, 1, 2, 3, 4, 5]), Digits(only=[6, 7, 8, 9], limit=100)
    assert result.provenance["data"] == {
        "pretrain": data_digest(first),
        "phase1": data_digest(last),
        "phase2": data_digest(last),
    }
    assert [row["epoch"] for row in result.history] == list(range(6))
    assert ["pretrain/val/accuracy" in row for row in result.history] == [True] * 2 + [False] * 4
    assert ["val/accuracy" in row for row in result.history] == [False] * 2 + [True] * 4
    net = api.load(folder / "model.lcz")
    for split, loader in (("val", last.val_dataloader()), ("test", last.test_dataloader())):
        inputs, targets, *_ = next(iter(loader))
        right = (net(inputs).argmax(1) == targets).float().mean().item()
        assert result.metrics[f"{split}/accuracy"] == pytest.approx(right)
    dense = sum(p.numel() for p in SmallConv(width=0.25, num_classes=4).parameters())
    assert result.cost["dense_bytes"] == 4 * dense
    six, four = (sum(macs(SmallConv(width=0.25, num_classes=classes), first.example).values()) for classes in (6, 4))
    assert result.train_flops == 6.0 * (six * 2 * first.num_train + four * 4 * 100)


def test_all_but_the_class_layer_goes_on(whole: tuple[Path, Result]) -> None:
    """What the second phase started from is what the first one ended with, and a class layer as it is built."""
    folder, result = whole
    before = torch.load(folder / "phase0.ckpt", weights_only=True)["state_dict"]
    handed = torch.load(folder / "phase0.pt", weights_only=True)["state"]
    fresh = build.model({**result.config["model"], "in_channels": 1, "num_classes": 4}, seed=0).state_dict()
    for name, tensor in handed.items():
        kept = fresh[name] if name.startswith("fc.") else before[f"model.{name}"]
        assert torch.equal(tensor, kept), name
    assert handed["fc.weight"].shape[0] == 4
    assert before["model.fc.weight"].shape[0] == 6


@pytest.mark.parametrize("epoch", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, 4))])
def test_killed_in_each_phase_and_resumed_is_uninterrupted(
    whole: tuple[Path, Result], configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    def log(self: wandb.Run, row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise KilledError

    config = configure(*TRANSFER, "evaluate_test=true")
    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", log)
        with pytest.raises(KilledError):
            train(config, tmp_path / "run")
    again = train(config, tmp_path / "run")
    folder, result = whole
    assert (tmp_path / "run" / "model.lcz").read_bytes() == (folder / "model.lcz").read_bytes()
    assert again.history == result.history
    assert again.metrics == result.metrics


def test_a_network_cut_on_one_set_is_cut_on_the_next(configure: Any, tmp_path: Path) -> None:
    phases = f"phases=[{PRETRAIN.replace('methods:[]', 'methods:[prune]')},{{epochs:1,methods:[]}}]"
    result = train(configure("prune=channel", "data.only=[6,7,8,9]", "methods.prune.sparsity=0.5", phases), tmp_path)
    assert result.cost["params"] < sum(p.numel() for p in SmallConv(width=0.25, num_classes=4).parameters())
    base = build.model({**result.config["model"], "in_channels": 1, "num_classes": 4}, seed=0)
    handed = torch.load(tmp_path / "phase0.pt", weights_only=True)
    cut = replay(base, handed["edits"])
    assert {name: t.shape for name, t in cut.state_dict().items()} == {n: t.shape for n, t in handed["state"].items()}
    assert handed["state"]["conv1.weight"].shape[0] < 4


def test_the_same_data_for_two_phases_is_one(configure: Any) -> None:
    config = configure(f"phases=[{PRETRAIN},{PRETRAIN.replace('pretrain', 'more')},{{methods:[]}}]")
    own = build.ground(config, build.data(config))
    first, second, last = build.grounds(config, own)
    assert first is second
    assert last is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"phases=[{{epochs:1}},{{data:{{{_DIGITS}}}}}]",), r"phases\[1\]: the last phase trains on data=\.\.\."),
        (("phases=[{data:digits},{epochs:1}]",), r"phases\[0\]: data must be a mapping with a _target_.*got 'digits'"),
        ((f"phases=[{{data:{{{_DIGITS},onyl:[1]}}}},{{epochs:1}}]",), "no 'onyl' in .*did you mean 'only'"),
        ((f"phases=[{PRETRAIN},{{epochs:1,keep_optimizer:true}}]",), r"phases\[1\]: keep_optimizer goes with the data"),
        (("phases=[{name:a},{name:a}]",), "name must be a word without a slash, and each phase's own"),
        (("phases=[{name:a/b}]",), "name must be a word without a slash"),
        (("weights=some.pt", f"phases=[{PRETRAIN},{{epochs:1}}]"), "weights are start weights for data="),
    ],
)
def test_settings_that_cannot_be(configure: Callable[..., Any], overrides: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(*overrides)


def test_a_teacher_teaches_on_its_own_data_only(configure: Any, tmp_path: Path) -> None:
    phases = f"phases=[{PRETRAIN.replace(',methods:[]', '')},{{epochs:1}}]"
    with pytest.raises(ConfigError, match="a teacher is trained on data="):
        train(configure("distill=kl", "model@teacher.model=small_conv", phases), tmp_path)


def test_sets_whose_inputs_differ_are_named(configure: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Wider(Digits):  # type: ignore[misc]
        """Digits of twice the size."""

        def read_train_val(self) -> Any:
            return tuple(
                part.__class__(part.inputs.repeat(1, 1, 2, 2), part.labels, part.names)
                for part in super().read_train_val()
            )

    config = configure("model=mlp", f"phases=[{PRETRAIN},{{epochs:1}}]")
    monkeypatch.setattr(config_of, "build", _instead(config_of.build, Wider))
    with pytest.raises(ConfigError, match=r"Wider with inputs \[1, 16, 16\] and a later one on Digits .*\[1, 8, 8\]"):
        train(config, tmp_path)


def _instead(make: Callable[..., Any], other: Callable[[], Any]) -> Callable[..., Any]:
    def built(node: Any, *args: Any, **offered: Any) -> Any:
        return other() if node.get("only") else make(node, *args, **offered)

    return built


def test_texts_must_have_the_same_tokens(tmp_path: Path) -> None:
    def ground(name: str, **options: Any) -> Ground:
        data = TextFile(str(tmp_path / name), tokens="words", length=4, **options)
        return Ground(lambda: TextLM(vocab_size=data.vocab_size, features=4), data, next_token(), data.example)

    (tmp_path / "one").write_text("wind and night\n" * 60)
    (tmp_path / "other").write_text("fox and dog\n" * 60)
    one, other = ground("one"), ground("other")
    assert one.data.vocab_size == other.data.vocab_size, "so that every tensor would fit"
    with pytest.raises(ConfigError, match=r"TextFile with other tokens, .* give both one tokenizer=FILE"):
        check(one, other)
    one.data.save(tmp_path)
    check(one, ground("other", tokenizer=str(tmp_path / "tokenizer.json")))


def test_no_rung_is_asked_about_while_other_data_is_trained_on(configure: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a rung comes after the 2 epochs on other data .*got \[2\]"):
        train(configure(*TRANSFER), tmp_path, Rungs((2, 3), lambda *_: True))
