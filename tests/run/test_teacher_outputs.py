from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_compress.data.augment import Jitter
from lightning_compress.data.digits import Digits
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.run import teacher_outputs as module
from lightning_compress.run.result import Result
from lightning_compress.run.rungs import Rungs
from lightning_compress.run.targets import ConfigError
from lightning_compress.run.teacher_outputs import teacher_outputs
from lightning_compress.run.train import train

Configured = Callable[..., dict[str, Any]]


class Counting(nn.Module):
    """Counts the samples it was shown."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = SmallConv(width=0.25)
        self.seen = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += len(inputs)
        out: Tensor = self.net(inputs)
        return out


@pytest.fixture
def config(configure: Configured, tmp_path: Path) -> dict[str, Any]:
    return configure(f"teacher.outputs={tmp_path / 'outputs'}", "trainer.accelerator=cpu")


def _outputs(config: dict[str, Any], data: Digits, teacher: nn.Module) -> Tensor:
    (found,) = teacher_outputs(config, data, teacher)
    return found


def test_the_outputs_are_those_of_the_samples_in_order(config: dict[str, Any]) -> None:
    data, teacher = Digits(), Counting()
    found = _outputs(config, data, teacher)
    assert found.shape == (data.num_train, 10)
    assert found.dtype == torch.float32
    for batch in data.train_dataloader():
        with torch.no_grad():
            torch.testing.assert_close(found[batch.index], teacher.net.eval()(batch.inputs), rtol=1e-4, atol=1e-5)
        break


def test_the_second_one_reads_what_the_first_one_wrote(config: dict[str, Any], tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    found = _outputs(config, Digits(), first)
    again = _outputs(config, Digits(batch_size=7, seed=3), second)
    assert (first.seen, second.seen) == (1079, 0)
    assert torch.equal(found, again)
    (file,) = (tmp_path / "outputs").glob("*.safetensors")
    assert torch.equal(load_file(file)["outputs"], found)
    assert not list((tmp_path / "outputs").glob("*.part"))


@pytest.mark.parametrize("changed", [{"split_seed": 1}, {"mean": 0.0}, {"val_fraction": 0.3}])
def test_other_samples_or_another_teacher_have_a_file_of_their_own(
    changed: dict[str, Any], config: dict[str, Any], tmp_path: Path
) -> None:
    first = _outputs(config, Digits(), Counting())
    other = _outputs(config, Digits(**changed), Counting())
    assert first.shape != other.shape or not torch.equal(first, other)
    _outputs(config, Digits(), Counting(seed=1))
    assert len(list((tmp_path / "outputs").glob("*.safetensors"))) == 3


def test_nothing_without_a_folder(configure: Configured) -> None:
    assert teacher_outputs(configure(), Digits(), Counting()) == []


def test_data_that_does_not_say_what_its_samples_are(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs data that is a LabelledData, which object is not"):
        teacher_outputs(config, object(), Counting())


def test_every_view_has_outputs_of_its_own(config: dict[str, Any], tmp_path: Path) -> None:
    data, teacher = Digits(augment=[Jitter(1)], views=2), Counting()
    found = teacher_outputs(config, data, teacher)
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batch = next(iter(loader))
        assert set(batch.view.tolist()) == {1 + epoch % 2}
        with torch.no_grad():
            expected = teacher.net.eval()(batch.inputs)
        torch.testing.assert_close(found[epoch % 2][batch.index], expected, rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "outputs").glob("*.safetensors"))) == 2


def test_ever_new_views_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"write data\.views=4, say"):
        teacher_outputs(config, Digits(augment=[Jitter(1)]), Counting())


def test_a_damaged_file(config: dict[str, Any], tmp_path: Path) -> None:
    _outputs(config, Digits(), Counting())
    (file,) = (tmp_path / "outputs").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .*; delete it"):
        teacher_outputs(config, Digits(), Counting())


def test_trials_share_them_and_go_on_with_them(
    configure: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(configure("epochs=1"), tmp_path / "teacher")
    passes: list[Tensor] = []
    real = module._compute

    def counted(*arguments: Any) -> Tensor:
        passes.append(real(*arguments))
        return passes[-1]

    monkeypatch.setattr(module, "_compute", counted)
    network = ("model@teacher.model=small_conv", "teacher.model.width=0.25")
    teaching = ("distill=kl_cached", *network, f"teacher.weights={tmp_path / 'teacher/weights.pt'}")
    shared = configure(*teaching, f"teacher.outputs={tmp_path / 'outputs'}")
    whole = train(shared, tmp_path / "a")
    paused = train(shared, tmp_path / "b", Rungs([1], lambda result, epoch: False))
    assert paused.history == whole.history[:1]
    resumed = train(shared, tmp_path / "b")
    assert len(passes) == 1
    assert (resumed.history, resumed.metrics) == (whole.history, whole.metrics)
    assert (tmp_path / "a/model.lcz").read_bytes() == (tmp_path / "b/model.lcz").read_bytes()
    alone = train(configure(*teaching), tmp_path / "c")
    assert _distill(alone) == pytest.approx(_distill(whole), rel=0.02)


def _distill(result: Result) -> list[float]:
    return [row["train/distill"] for row in result.history]
