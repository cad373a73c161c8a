import pytest
import torch
from torch import nn

from lightning_compress.run import device


def test_what_is_wanted_is_taken() -> None:
    assert device.precision("16-mixed") == "16-mixed"
    assert device.channels_last(False, nn.Conv2d(1, 1, 1)) is False
    assert device.compiled(True) is True


def test_defaults_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, expected in (("fpu amx_bf16", "bf16-mixed"), ("avx512_bf16", "bf16-mixed"), ("avx2", "32-true")):
        monkeypatch.setattr("pathlib.Path.read_text", lambda self, flags=flags: flags)
        assert device.precision(None) == expected
    assert device.compiled(None) is False
    assert device.channels_last(None, nn.Sequential(nn.Conv2d(1, 1, 1))) is True
    assert device.channels_last(None, nn.Linear(1, 1)) is False


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("pathlib.Path.read_text", missing)
    assert device.precision(None) == "32-true"


def test_defaults_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert device.precision(None) == "bf16-mixed"
    assert device.compiled(None) is True
