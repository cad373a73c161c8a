import shutil
from pathlib import Path

import pytest

from lightning_compress.launch.job import Resources
from lightning_compress.launch.slots import Slots, discover

HALF, ONE, TWO, NONE = (Resources(devices=each) for each in (0.5, 1.0, 2.0, 0.0))


def test_shares_are_packed() -> None:
    slots = Slots(None, ["0", "1"], cores=8)
    assert [slots.take(name, HALF) for name in "abcde"] == [("0",), ("0",), ("1",), ("1",), None]
    slots.free("b")
    assert slots.take("f", ONE) is None
    assert slots.take("f", HALF) == ("0",)


def test_a_share_fills_a_gpu_before_it_opens_one() -> None:
    slots = Slots(None, ["0", "1"], cores=8)
    third = Resources(devices=1 / 3)
    assert [slots.take(name, third) for name in "abcd"] == [("0",), ("0",), ("0",), ("1",)]
    slots.free("a")
    slots.free("b")
    slots.free("d")
    assert slots.take("e", ONE) == ("1",)
    assert slots.take("f", third) == ("0",)


def test_several_gpus_are_whole_ones() -> None:
    slots = Slots(None, ["3", "5", "7"], cores=8)
    assert slots.take("half", HALF) == ("3",)
    assert slots.take("two", TWO) == ("5", "7")
    assert slots.take("one", ONE) is None
    slots.free("two")
    assert slots.take("one", ONE) == ("5",)
    assert slots.take("two", TWO) is None


def test_workers_limit_all_jobs() -> None:
    slots = Slots(2, ["0", "1", "2"], cores=1)
    assert [slots.take(name, HALF) for name in "abc"] == [("0",), ("0",), None]
    slots.resize(3)
    assert slots.take("c", NONE) == ()
    slots.resize(1)
    slots.free("a")
    slots.free("b")
    assert slots.fit(NONE) is None
    slots.free("c")
    assert slots.fit(NONE) == ()


def test_without_workers_cores_limit_jobs_without_gpus() -> None:
    slots = Slots(None, ["0"], cores=4)
    pair = Resources(cores=2)
    assert [slots.take(name, pair) for name in "abc"] == [(), (), None]
    assert slots.take("gpu", Resources(devices=1, cores=4)) == ("0",)


def test_an_exclusive_job_gets_the_emptiest() -> None:
    slots = Slots(None, ["0", "1", "2"], cores=4)
    slots.take("a", ONE)
    slots.take("b", HALF)
    assert slots.emptiest(HALF) == ("2",)
    assert slots.emptiest(ONE) == ("2",)
    assert slots.emptiest(TWO) == ("2", "1")
    assert slots.emptiest(NONE) == ()


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (TWO, "needs 2 GPUs and there are 1"),
        (Resources(devices=1.5), "whole ones"),
        (Resources(devices=-1), "whole ones"),
        (Resources(cores=5), "needs 5 cores and there are 4"),
        (Resources(cores=0), "at least one core"),
    ],
)
def test_what_never_fits_is_refused(resources: Resources, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Slots(None, ["0"], cores=4).check(resources)


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        Slots(0, [], cores=1)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0,2", ("0", "2")), ("", ()), ("-1", ()), ("1,-1,2", ("1",)), (" GPU-ab , GPU-cd", ("GPU-ab", "GPU-cd"))],
)
def test_the_environment_says_which_gpus(
    monkeypatch: pytest.MonkeyPatch, visible: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert discover() == expected


def test_else_the_driver_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-a)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-b)'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(tool))
    assert discover() == ("0", "1")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert discover() == ()
