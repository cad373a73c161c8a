import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_compress.launch import call
from lightning_compress.launch.job import Cause, Outcome
from tests.launch.cases import job


def _suppressed() -> BaseException:
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("lr") from None
    except ValueError as error:
        return error


def _during() -> BaseException:
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError:
            raise KeyError("clean up")  # noqa: B904 (the context is what is tested)
    except KeyError as error:
        return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.cuda.OutOfMemoryError("CUDA error"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA error: out of memory\nmore"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (ValueError("out of memory"), "error"),
        (OSError(errno.ENOSPC, "full"), "disk"),
        (OSError(errno.ENOENT, "none"), "error"),
        (_during(), "disk"),
        (_suppressed(), "error"),
    ],
)
def test_causes(error: BaseException, cause: Cause) -> None:
    assert call.classify(error) == cause


def test_torch_on_a_full_disk_is_disk() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.save(torch.zeros(100_000), "/dev/full")
    assert call.classify(caught.value) == "disk"


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert call.classify(first) == "error"


def test_importing_the_worker_takes_no_torch() -> None:
    code = "import sys; import lightning_compress.launch.call; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_a_full_disk_under_the_outcome_has_its_own_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_file = call.write(job(tmp_path, "add", first=1, second=2))

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert call.run(job_file) == call.UNWRITTEN


def test_a_later_rank_writes_only_that_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert call.run(call.write(job(tmp_path, "add", first=1, second=2))) == 0
    assert call.read(tmp_path / "job") is None
    assert call.run(call.write(job(tmp_path, "fill_memory"))) == 1
    assert not (tmp_path / "job" / "outcome.json").exists()
    assert call.read(tmp_path / "job") == Outcome("memory", "MemoryError")


def test_an_interrupt_is_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.launch.jobs.add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call.run(call.write(job(tmp_path, "add")))
