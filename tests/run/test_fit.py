import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_compress.core.method import Compact, Method
from lightning_compress.core.schedule import Polynomial
from lightning_compress.core.task import classification
from lightning_compress.data.digits import Digits
from lightning_compress.lowrank.method import LowRank
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.run.fit import Job, Phase, fit, load_checkpoint
from lightning_compress.slim.method import Slim


class KilledError(RuntimeError):
    """What stands for the process being killed."""


def _model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallConv(width=0.25)


def _prune() -> Sequence[Method]:
    return [Prune(Polynomial(last=0.5, end=0.5), pattern="channel", every=2)]


def _quantize() -> Sequence[Method]:
    return [Quantize(4, 8)]


def _lower() -> Sequence[Method]:
    return [LowRank(energy=0.7, exclude=["conv2"]), Slim("grouped", select="conv2$")]


def _killed() -> Sequence[Method]:
    raise KilledError


def _job(folder: Path, *phases: tuple[Callable[[], Sequence[Method]], int], **changes: Any) -> Job:
    pl.seed_everything(0, verbose=False)
    data = Digits(batch_size=256)
    return Job(
        build=changes.pop("build", _model),
        data=data,
        task=classification(10),
        phases=[Phase(*phase) for phase in phases],
        optimizer=changes.pop("optimizer", partial(torch.optim.SGD, lr=0.05, momentum=0.9)),
        scheduler=None,
        example=data.example,
        folder=folder,
        trainer={"accelerator": "cpu", **changes.pop("trainer", {})},
        **changes,
    )


def _kill_at(epoch: int) -> Callable[[dict[str, float]], None]:
    def report(row: dict[str, float]) -> None:
        if row["epoch"] == epoch:
            raise KilledError

    return report


def _same(one: Compact, other: Compact) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    stored = all(
        torch.equal(x, y) for name in one.stored for x, y in [(one.stored[name].value, other.stored[name].value)]
    )
    return (
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) and stored and one.edits == other.edits
    )


PHASES: tuple[tuple[Callable[[], Sequence[Method]], int], ...] = ((lambda: [], 2), (_prune, 2), (_quantize, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compact, list[dict[str, float]]]:
    """Dense, then channels removed, then quantized, in one go."""
    folder = tmp_path_factory.mktemp("whole")
    found = fit(_job(folder, *PHASES))
    assert sorted(path.name for path in folder.iterdir()) == [
        "phase0.ckpt",
        "phase0.pt",
        "phase1.ckpt",
        "phase1.pt",
        "phase2.ckpt",
    ]
    return found


def test_phases_hand_over(whole: tuple[Compact, list[dict[str, float]]]) -> None:
    compact, curve = whole
    assert [row["epoch"] for row in curve] == [0, 1, 2, 3, 4, 5]
    assert ["train/prune/amount" in row for row in curve[:3]] == [False, False, True]
    keeps = [edit for edit in compact.edits if edit["kind"] == "keep"]
    assert keeps, "channels were removed in the second phase"
    dense = _model().state_dict()["conv2.weight"]
    now = compact.model.state_dict()["conv2.weight"]
    assert now.shape[0] < dense.shape[0]
    assert compact.stored["conv2.weight"].bits == 4
    assert len(set(compact.stored["conv2.weight"].value[0].flatten().tolist())) <= 15


def test_the_first_epochs_after_a_hand_over_start_from_what_was_learnt(
    whole: tuple[Compact, list[dict[str, float]]],
) -> None:
    _, curve = whole
    assert curve[0]["train/loss"] > curve[1]["train/loss"]
    assert curve[4]["train/loss"] < curve[0]["train/loss"]


@pytest.mark.parametrize("epoch", [1, 3, 4, 5], ids=lambda epoch: f"in epoch {epoch}")
def test_killed_and_resumed_is_uninterrupted(
    epoch: int, whole: tuple[Compact, list[dict[str, float]]], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        fit(_job(tmp_path, *PHASES, report=_kill_at(epoch)))
    compact, curve = fit(_job(tmp_path, *PHASES))
    assert _same(compact, whole[0])
    assert curve == whole[1]


@pytest.mark.parametrize("number", [1, 2])
def test_killed_between_phases_and_resumed_is_uninterrupted(
    number: int, whole: tuple[Compact, list[dict[str, float]]], tmp_path: Path
) -> None:
    stopped = [*PHASES[:number], (_killed, 2), *PHASES[number + 1 :]]
    with pytest.raises(KilledError):
        fit(_job(tmp_path, *stopped))
    assert (tmp_path / f"phase{number - 1}.pt").exists()
    assert not (tmp_path / f"phase{number}.ckpt").exists()
    compact, curve = fit(_job(tmp_path, *PHASES))
    assert _same(compact, whole[0])
    assert curve == whole[1]


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, curve = fit(_job(tmp_path, (_quantize, 2)))
    steps: list[dict[str, float]] = []
    again, same_curve = fit(_job(tmp_path, (_quantize, 2), report=steps.append))
    assert steps == []
    assert same_curve == curve
    assert _same(first, again)


def test_the_report_counts_epochs_over_all_phases(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    fit(_job(tmp_path, (lambda: [], 1), (_quantize, 2), report=rows.append))
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all("val/accuracy" in row for row in rows)


def test_validation_and_checkpoints_at_intervals(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    with pytest.raises(KilledError):
        fit(_job(tmp_path, (list, 4), report=_kill_at(2), checkpoint_every=2, validate_every=2))
    saved = load_checkpoint(tmp_path / "phase0.ckpt")
    assert saved["epoch"] == 1
    fit(_job(tmp_path, (list, 4), report=rows.append, checkpoint_every=2, validate_every=2))
    assert [("val/accuracy" in row, row["epoch"]) for row in rows] == [(False, 2), (True, 3)]


@pytest.mark.parametrize("name", ["phase0.ckpt", "phase0.pt"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_damaged_checkpoint(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read checkpoint .*{name}: .*; delete it to start over"):
        fit(_job(tmp_path, (list, 1), (list, 1)))
    assert (tmp_path / name).read_bytes() == content


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Evil()}, tmp_path / "phase0.ckpt")
    with pytest.raises(ValueError, match="cannot read checkpoint"):
        load_checkpoint(tmp_path / "phase0.ckpt")
    assert not (tmp_path / "pwned").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to an interrupt: who starts the tests in the background may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stays_one_and_the_next_is_heard(tmp_path: Path) -> None:
    def report(row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(_job(tmp_path, (list, 3), report=report))
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "phase0.ckpt").exists()
    _, curve = fit(_job(tmp_path, (list, 3)))
    assert [row["epoch"] for row in curve] == [0, 1, 2]


def test_a_loss_that_becomes_nan_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    fit(_job(tmp_path, (list, 1)))
    before = (tmp_path / "phase0.ckpt").read_bytes()

    def diverges(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1)

    saved = load_checkpoint(tmp_path / "phase0.ckpt")
    saved["state_dict"]["model.conv1.weight"].fill_(torch.nan)
    torch.save(saved, tmp_path / "phase0.ckpt")
    spoilt = (tmp_path / "phase0.ckpt").read_bytes()
    with pytest.raises(ValueError, match="became NaN in epoch 1: lower the learning rate"):
        fit(_job(tmp_path, (list, 3), optimizer=diverges))
    assert (tmp_path / "phase0.ckpt").read_bytes() == spoilt != before


@pytest.mark.parametrize("trainer", [{"accelerator": "abacus"}, {"devices": "many"}, {"strateg": "ddp"}])
def test_a_trainer_that_cannot_be(trainer: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        fit(_job(tmp_path, (list, 1), trainer=trainer))


def test_the_base_network_is_not_trained(tmp_path: Path) -> None:
    base = _model()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    fit(_job(tmp_path, (_quantize, 1)))
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def _fine_tune() -> Sequence[Method]:
    return []


KEPT = (Phase(_prune, 2), Phase(_fine_tune, 2, keep_optimizer=True))


def test_momentum_goes_on_after_the_cut_and_a_killed_run_too(tmp_path: Path) -> None:
    handed: list[dict[str, Any]] = []

    def adam(groups: Any) -> torch.optim.Optimizer:
        made = torch.optim.Adam(groups, lr=0.01)
        made.register_load_state_dict_pre_hook(lambda _, state: handed.append(state["state"]))
        return made

    job = replace(_job(tmp_path / "whole", optimizer=adam), phases=KEPT)
    compact, curve = fit(job)
    assert len(handed) == 1
    saved = load_checkpoint(tmp_path / "whole" / "phase0.pt")
    small = compact.model.state_dict()
    assert saved["moments"].keys() == dict(compact.model.named_parameters()).keys()
    assert all(state["exp_avg"].shape == small[name].shape for name, state in saved["moments"].items())
    assert {float(state["step"]) for state in saved["moments"].values()} == {2.0 * 5}

    with pytest.raises(KilledError):
        fit(replace(_job(tmp_path / "killed", optimizer=adam, report=_kill_at(3)), phases=KEPT))
    again, same_curve = fit(replace(_job(tmp_path / "killed", optimizer=adam), phases=KEPT))
    assert _same(compact, again)
    assert curve == same_curve

    fresh, _ = fit(replace(_job(tmp_path / "fresh", optimizer=adam), phases=[Phase(_prune, 2), Phase(_fine_tune, 2)]))
    assert load_checkpoint(tmp_path / "fresh" / "phase0.pt")["moments"] == {}
    assert not _same(compact, fresh)


def test_ranks_of_random_start_weights_are_found_again(tmp_path: Path) -> None:
    phases = ((_lower, 2), (_prune, 1))
    want, curve = fit(_job(tmp_path / "whole", *phases))
    assert [edit["kind"] for edit in want.edits][:3] == ["factor"] * 3
    ranks = [edit["ranks"] for edit in want.edits if edit.get("form") in ("svd", "tucker")]
    assert len(ranks) == 3
    for folder, stopped, report in (("inside", phases, _kill_at(1)), ("between", (phases[0], (_killed, 1)), None)):
        with pytest.raises(KilledError):
            fit(_job(tmp_path / folder, *stopped, report=report))
        compact, again = fit(_job(tmp_path / folder, *phases))
        assert _same(compact, want), folder
        assert again == curve, folder
