import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.core.compressor import NoEffectError
from lightning_compress.cost.macs import macs
from lightning_compress.data.digits import Digits
from lightning_compress.distill.teacher import fingerprint
from lightning_compress.export import packed, runtime
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.run import api, fit, measure
from lightning_compress.run import train as module
from lightning_compress.run.config import compose
from lightning_compress.run.result import Result
from lightning_compress.run.targets import ConfigError
from lightning_compress.run.teaching import load_teacher
from lightning_compress.run.train import announce, train
from lightning_compress.tracking import wandb


class KilledError(RuntimeError):
    """What stands for the process being killed."""


def _kill_at(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    def log(self: wandb.Run, row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise KilledError

    monkeypatch.setattr(wandb.Run, "log", log)


def _same_files(one: Path, other: Path) -> bool:
    a, b = (torch.load(folder / "weights.pt", weights_only=True) for folder in (one, other))
    packed_same = (one / "model.lcz").read_bytes() == (other / "model.lcz").read_bytes()
    return packed_same and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_records_everything(joint: tuple[Path, Result], joint_overrides: Sequence[str], configure: Any) -> None:
    folder, result = joint
    assert result.status == "done"
    assert result == Result.load(folder)
    assert result.config == configure(*joint_overrides)
    assert {"train/loss", "train/distill", "val/loss", "val/accuracy", "test/accuracy"} <= set(result.metrics)
    assert [row["epoch"] for row in result.history] == [0, 1]
    assert result.history[-1]["train/loss"] == result.metrics["train/loss"]
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "config.json",
        "edits.json",
        "model.lcz",
        "phase0.ckpt",
        "place.json",
        "result.json",
        "weights.pt",
    }
    assert set(result.files.values()) <= {path.name for path in folder.iterdir()}
    assert {"python", "torch"} <= set(result.provenance["versions"]) | set(result.provenance)
    dense = sum(macs(SmallConv(width=0.25), Digits().example).values())
    assert result.train_flops == 6.0 * dense * 1079 * 2
    assert 0.5 < result.cost["sparsity"] < 0.9
    assert result.wall_seconds > 0


def test_the_validation_numbers_are_those_of_the_packed_file(joint: tuple[Path, Result]) -> None:
    folder, result = joint
    model = api.load(folder / "model.lcz")
    inputs, targets, *_ = next(iter(Digits().val_dataloader()))
    with torch.no_grad():
        right = (model(inputs).argmax(1) == targets).float().mean().item()
    assert right == pytest.approx(result.metrics["val/accuracy"])


def test_a_finished_run_is_returned_as_it_is(joint: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, result = joint
    monkeypatch.setattr(module, "fit", lambda job: pytest.fail("it was trained again"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    elsewhere = {**result.config["wandb"], "group": "another", "mode": "offline"}
    assert train({**result.config, "wandb": elsewhere}, folder) == result
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_another_configuration_is_refused(joint: tuple[Path, Result]) -> None:
    folder, result = joint
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigError, match=r"another configuration \(it differs in seed, epochs\)"):
        train({**result.config, "seed": 9, "epochs": 9}, folder)
    timed = {**result.config["measure"], "latency": True}
    with pytest.raises(ConfigError, match=r"it differs in measure"):
        train({**result.config, "measure": timed}, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_folder_where_nothing_was_trained_yet_is_free(configure: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matched no layer"):
        train(configure("prune=gradual", "methods.prune.select=nothing"), tmp_path)
    assert train(configure("epochs=1"), tmp_path).status == "done"


def test_an_interrupted_run_is_resumed_bit_for_bit(
    joint: tuple[Path, Result], joint_overrides: Sequence[str], configure: Any, tmp_path: Path
) -> None:
    whole_folder, whole = joint
    config = configure(*joint_overrides)
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, 1)
        with pytest.raises(KilledError):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run/result.json").exists()
    resumed = train(config, tmp_path / "run")
    assert _same_files(whole_folder, tmp_path / "run")
    for field in ("metrics", "cost", "layers", "history", "checks", "train_flops", "files", "config"):
        assert getattr(resumed, field) == getattr(whole, field), field


def test_a_run_stopped_before_its_result_is_measured_again(joint: tuple[Path, Result], tmp_path: Path) -> None:
    folder, whole = joint
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name in ("result.json", "model.lcz", "weights.pt"):
        (copy / name).unlink()
    again = train(whole.config, copy)
    assert again.metrics == whole.metrics
    assert again.history == whole.history
    assert _same_files(folder, copy)


def test_phases_with_a_hand_over(configure: Any, tmp_path: Path) -> None:
    phases = "phases=[{methods:[],epochs:1},{methods:[prune,quantize],epochs:2}]"
    overrides = ("prune=gradual", "methods.prune.pattern=channel", "methods.prune.every=2", "quantize=affine", phases)
    config = configure(*overrides)
    whole = train(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, 1)
        with pytest.raises(KilledError):
            train(config, tmp_path / "cut")
    assert (tmp_path / "cut/phase0.pt").exists()
    resumed = train(config, tmp_path / "cut")
    assert _same_files(tmp_path / "whole", tmp_path / "cut")
    assert resumed.metrics == whole.metrics
    assert [row["epoch"] for row in resumed.history] == [0, 1, 2]
    assert whole.cost["params"] < sum(p.numel() for p in SmallConv(width=0.25).parameters())
    inputs = Digits().example
    assert torch.isfinite(api.load(tmp_path / "whole/model.lcz")(inputs)).all()


def test_a_run_that_fails_leaves_no_result(configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(measure, "measure", broken)
    with pytest.raises(OSError, match="No space"):
        train(configure("epochs=1"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "phase0.ckpt", "place.json"]


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(configure: Any, tmp_path: Path) -> None:
    results = [train(configure("epochs=1", f"seed={seed}"), tmp_path / f"{i}") for i, seed in enumerate((3, 3, 4))]
    assert results[0].metrics == results[1].metrics != results[2].metrics
    assert _same_files(tmp_path / "0", tmp_path / "1")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were trained in."""
    seen: list[Path] = []
    real: Callable[[fit.Job], Any] = fit.fit

    def counted(job: fit.Job) -> Any:
        seen.append(job.folder)
        return real(job)

    monkeypatch.setattr(module, "fit", counted)
    return seen


def test_a_teacher_is_trained_once_and_known_by_what_decides_it(
    configure: Any, tmp_path: Path, fits: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(*overrides: str) -> dict[str, Any]:
        base = ("epochs=1", "distill=kl", "model@teacher.model=small_conv", f"teacher.folder={tmp_path / 'teachers'}")
        return configure(*base, *overrides)  # type: ignore[no-any-return]

    told: dict[str, Any] = {}
    monkeypatch.setattr(wandb.Run, "summary", lambda run, values: told.update(values))
    result = train(config(), tmp_path / "a")
    (teacher,) = (tmp_path / "teachers").glob("teacher-*")
    assert fits == [tmp_path / "a", teacher]
    assert result.provenance["teacher"] == fingerprint(load_teacher(config(), Digits(), tmp_path / "a", train))
    assert told["teacher"] == result.provenance["teacher"]
    assert "teacher" not in Result.load(teacher).provenance
    assert Result.load(teacher).config["methods"] == {}
    assert "test/accuracy" not in Result.load(teacher).metrics
    train(config("seed=1", "methods.distill.weight=0.5", "trainer.accelerator=cpu"), tmp_path / "b")
    assert fits[2:] == [tmp_path / "b"], "the teacher was known"
    train(config("teacher.model.width=0.5"), tmp_path / "c")
    assert len(list((tmp_path / "teachers").glob("teacher-*"))) == 2
    named = config(f"teacher.weights={teacher / 'weights.pt'}")
    kept = torch.load(teacher / "weights.pt", weights_only=True)
    loaded = load_teacher(named, Digits(), tmp_path / "d", train).state_dict()
    assert torch.equal(loaded["conv1.weight"], kept["conv1.weight"])


def test_assistants_are_taught_one_by_the_other(configure: Any, tmp_path: Path, fits: list[Path]) -> None:
    def config(*overrides: str) -> dict[str, Any]:
        chain = [f"+model@teacher.assistants.{name}=small_conv" for name in ("first", "second")]
        widths = ["teacher.assistants.first.width=0.75", "teacher.assistants.second.width=0.5"]
        base = ("epochs=1", "distill=kl", "model@teacher.model=small_conv", f"teacher.folder={tmp_path / 'taught'}")
        return configure(*base, *chain, *widths, *overrides)  # type: ignore[no-any-return]

    train(config(), tmp_path / "a")
    _, teacher, first, second = fits
    assert [path.name.partition("-")[0] for path in (teacher, first, second)] == ["teacher", "assistant", "assistant"]
    for path, width, before in [(first, 0.75, teacher), (second, 0.5, first)]:
        result = Result.load(path)
        assert result.config["model"]["width"] == width
        assert result.config["teacher"]["weights"] == str(before / "weights.pt")
        assert result.history[0]["train/distill"] > 0
    loaded = load_teacher(config(), Digits(), tmp_path / "b", train).state_dict()
    kept = torch.load(second / "weights.pt", weights_only=True)
    assert torch.equal(loaded["conv1.weight"], kept["conv1.weight"])
    assert len(fits) == 4
    train(config("methods.distill.temperature=2.0"), tmp_path / "c")
    assert len(fits) == 7, "assistants go by how they were taught, the teacher does not"


def test_peers_and_classifiers_are_resumed_and_not_deployed(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps = ("methods.own_teacher.taps=[relu1,relu2]", "methods.own_teacher.deepest=relu3")
    config = configure("mutual=dml", "own_teacher=classifiers", *taps)
    whole = train(config, tmp_path / "whole")
    own = {f"train/own_{name}" for name in ("labels", "outputs", "features")}
    assert {"train/mutual", "train/peer1", *own} <= whole.metrics.keys()
    with monkeypatch.context() as patch:
        _kill_at(patch, epoch=1)
        with pytest.raises(KilledError):
            train(config, tmp_path / "killed")
    assert train(config, tmp_path / "killed").metrics == whole.metrics
    assert _same_files(tmp_path / "whole", tmp_path / "killed")
    ends = [torch.load(tmp_path / name / "phase0.ckpt", weights_only=True) for name in ("whole", "killed")]
    apart = [key for key in ends[0]["state_dict"] if ".peers.0." in key or ".classifiers.1." in key]
    assert len(apart) == len(SmallConv().state_dict()) + 20
    assert all(torch.equal(*(end["state_dict"][key] for end in ends)) for key in apart)
    plain = SmallConv(width=0.25)
    kept = torch.load(tmp_path / "whole/weights.pt", weights_only=True)
    assert kept.keys() == plain.state_dict().keys()
    deployed = packed.rebuild(packed.read(tmp_path / "whole/model.lcz"), plain)
    assert [name for name, _ in deployed.named_modules()] == [name for name, _ in plain.named_modules()]
    assert (tmp_path / "whole/model.lcz").stat().st_size < 4.5 * sum(value.numel() for value in kept.values())


def test_a_reused_classifier_goes_through_phases_and_is_deployed(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("methods.reuse.features=relu3", "model@teacher.model=small_conv", "teacher.epochs=1")
    phases = "phases=[{methods:[reuse],epochs:1},{methods:[reuse,quantize],epochs:2}]"
    config = configure("reuse=simkd", "quantize=affine", *names, phases)
    whole = train(config, tmp_path / "whole")
    assert [row["train/loss"] for row in whole.history] == [row["train/reuse"] for row in whole.history]
    with monkeypatch.context() as patch:
        _kill_at(patch, epoch=2)
        with pytest.raises(KilledError):
            train(config, tmp_path / "killed")
    assert train(config, tmp_path / "killed").metrics == whole.metrics
    assert _same_files(tmp_path / "whole", tmp_path / "killed")
    (teacher,) = (tmp_path / "whole").glob("teacher-*")
    read = packed.read(tmp_path / "whole/model.lcz")
    theirs = torch.load(teacher / "weights.pt", weights_only=True)["fc.weight"]
    torch.testing.assert_close(read.tensors["fc.weight"].value, theirs, rtol=0, atol=0.01)
    deployed = packed.rebuild(read, SmallConv(width=0.25))
    data = Digits()
    data.setup()
    right = [deployed(inputs).argmax(1) == targets for inputs, targets, *_ in data.val_dataloader()]
    assert torch.cat(right).float().mean().item() == pytest.approx(whole.metrics["val/accuracy"])


def test_without_a_teacher_nothing_is_trained(configure: Any, tmp_path: Path, fits: list[Path]) -> None:
    phases = "phases=[{methods:[]},{methods:[distill]}]"
    with pytest.raises(ConfigError, match="distillation needs a teacher: choose its network"):
        train(configure("distill=kl", phases), tmp_path)
    assert fits == []


def test_the_test_split_is_read_only_when_asked(
    configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    real = Digits.read_test

    def counted(self: Digits) -> Any:
        reads.append(1)
        return real(self)

    monkeypatch.setattr(Digits, "read_test", counted)
    result = train(configure("epochs=1"), tmp_path / "closed")
    assert reads == []
    assert not [name for name in result.metrics if name.startswith("test/")]
    result = train(configure("epochs=1", "evaluate_test=true"), tmp_path / "open")
    assert reads == [1]
    assert "test/accuracy" in result.metrics


def test_latency_beside_a_reference(configure: Any, tmp_path: Path) -> None:
    timed = ("epochs=1", "measure.latency=true", "measure.rounds=3", "measure.batch_size=2")
    first = train(configure(*timed), tmp_path / "a")
    assert (tmp_path / "a/dense.onnx").exists()
    second = train(configure(*timed, f"measure.reference={tmp_path / 'a/model.onnx'}"), tmp_path / "b")
    assert not (tmp_path / "b/dense.onnx").exists()
    assert {"latency_ms", "latency_ratio", "dense_latency_ms", "device", "runtime"} <= set(second.cost)
    assert first.cost["threads"] == 1
    assert first.cost["runtime"] == first.cost["dense_runtime"] == runtime.name
    assert "runtimes_left_out" not in first.cost


def test_threads_are_set_for_the_run_alone(configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    train(configure("epochs=1", "speed.threads=3"), tmp_path)
    assert asked == [3, before]


def test_what_is_said_about_logging(configure: Any, tmp_path: Path) -> None:
    assert announce(configure(), tmp_path) == "W&B is off."
    assert f"sync {tmp_path}`" in announce(configure("wandb.mode=offline"), tmp_path)
    assert "sync elsewhere`" in announce(configure("wandb.mode=offline", "wandb.folder=elsewhere"), tmp_path)


def test_the_configuration_is_kept_beside_the_run(joint: tuple[Path, Result]) -> None:
    folder, result = joint
    assert json.loads((folder / "config.json").read_text()) == result.config


def test_the_packed_file_names_its_network(joint: tuple[Path, Result]) -> None:
    architecture = packed.read(joint[0] / "model.lcz").architecture
    assert architecture is not None
    assert architecture["input_shape"] == [1, 8, 8]
    assert architecture["model"]["_target_"] == "lightning_compress.models.small_conv.SmallConv"
    assert architecture["model"]["num_classes"] == 10


@pytest.mark.data
@pytest.mark.skipif("LIGHTNING_COMPRESS_DATA" not in os.environ, reason="LIGHTNING_COMPRESS_DATA is unset")
@pytest.mark.parametrize("name", ["mnist/lenet5_joint", "deep_compression/lenet_5", "cifar10/resnet20_joint"])
def test_a_shipped_experiment_on_a_little_of_its_data(name: str, tmp_path: Path) -> None:
    few = ["epochs=1", "teacher.epochs=1", "data.limit=256", "evaluate_test=false", "measure.rounds=3"]
    small = ["model.width=0.25", "teacher.model.width=0.25", "methods.prune.every=1", "measure.batch_size=2"]
    config = compose([f"experiment={name}", *few, *small, "wandb.mode=disabled"])
    result = train(config, tmp_path)
    assert result.name == name
    assert result.cost["latency_ms"] > 0
    assert result.cost["packed_bytes"] < result.cost["dense_bytes"]


def test_trained_weights_are_quantized_without_an_epoch(tmp_path: Path, configure: Any) -> None:
    dense = train(configure("epochs=6"), tmp_path / "dense")
    asked = ("quantize=ptq", "methods.quantize.adaround=20", f"weights={tmp_path / 'dense' / 'weights.pt'}", "epochs=0")
    result = train(configure(*asked), tmp_path / "quantized")
    assert (result.status, result.history, result.train_flops) == ("done", [], 0.0)
    assert result.metrics["val/accuracy"] >= dense.metrics["val/accuracy"] - 0.02
    assert result.cost["packed_bytes"] < 0.4 * dense.cost["packed_bytes"]
    stored = packed.read(tmp_path / "quantized" / "model.lcz").tensors
    assert {stored[name].bits for name in stored if name.endswith("weight")} == {8}
    again = train(configure(*asked), tmp_path / "again")
    assert _same_files(tmp_path / "quantized", tmp_path / "again")
    assert again.metrics == result.metrics


def test_a_phase_without_epochs_follows_one_with(tmp_path: Path, configure: Any) -> None:
    phases = "phases=[{methods: [], epochs: 1}, {methods: [quantize], epochs: 0}]"
    result = train(configure("quantize=affine", phases), tmp_path)
    assert [row["epoch"] for row in result.history] == [0]
    assert packed.read(tmp_path / "model.lcz").tensors["fc.weight"].bits == 8


def test_without_an_epoch_schedules_are_at_their_ends(tmp_path: Path, configure: Any) -> None:
    result = train(configure("prune=gradual", "methods.prune.sparsity.last=0.5", "epochs=0"), tmp_path)
    assert 0.45 < result.cost["sparsity"] < 0.55


def test_what_only_training_can_do_is_refused_without(tmp_path: Path, configure: Any) -> None:
    with pytest.raises(NoEffectError, match="Distill had no effect"):
        train(configure("distill=kl", "model@teacher.model=small_conv", "teacher.epochs=1", "epochs=0"), tmp_path)


def test_a_run_that_diverged_in_its_last_step_says_so(configure: Any, tmp_path: Path) -> None:
    steep = ("optimizer=sgd", "optimizer.lr=1e38", "optimizer.weight_decay=1e30")
    with pytest.raises(ValueError, match=r"training diverged: .* not finite; lower optimizer\.lr"):
        train(configure("epochs=1", "data.batch_size=2000", *steep), tmp_path)


def test_a_mask_of_infinities_is_no_divergence() -> None:
    net = torch.nn.Linear(2, 2)
    net.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    module._check_finite(net)
    net.register_buffer("mean", torch.tensor([0.0, float("nan")]))
    with pytest.raises(ValueError, match="training diverged: mean and 0 more"):
        module._check_finite(net)
