from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.run import device, fit


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


def test_where_channels_last_trains_wrongly() -> None:
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1, stride=2))
    assert device.unsafe_channels_last(narrow) == "1"
    assert device.channels_last(None, narrow) is False
    assert device.channels_last(False, narrow) is False
    with pytest.raises(ValueError, match=r"'1', a strided 1x1 convolution .*; write speed\.channels_last=false"):
        device.channels_last(True, narrow)
    for safe in (nn.Conv2d(16, 8, 1, stride=2), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 3, stride=2)):
        assert device.unsafe_channels_last(safe) is None
        assert device.channels_last(None, safe) is True
    assert device.unsafe_channels_last(nn.Conv2d(32, 32, 1, stride=2, groups=4)) is not None


def test_a_network_that_became_narrow_is_laid_out_otherwise() -> None:
    job: Any = SimpleNamespace(speed={"channels_last": True, "compile_model": False})
    assert fit._speed(job, nn.Conv2d(16, 32, 1, stride=2)) == {"channels_last": True, "compile_model": False}
    assert fit._speed(job, nn.Conv2d(15, 32, 1, stride=2)) == {"channels_last": False, "compile_model": False}
