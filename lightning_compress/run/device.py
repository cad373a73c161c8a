"""Defaults that depend on the machine."""

from pathlib import Path

import torch
from torch import nn


def has_fast_bf16() -> bool:
    """Whether bf16 matrix products run on units made for them: on a GPU, or on a CPU with AMX or AVX512-BF16.

    Elsewhere bf16 is emulated and was measured 50 to 190 times slower than float32.
    """
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def precision(wanted: str | None) -> str:
    """Lightning's precision: what is wanted, or bf16 where it is fast.

    >>> precision("32-true")
    '32-true'
    """
    return wanted or ("bf16-mixed" if has_fast_bf16() else "32-true")


def channels_last(wanted: bool | None, model: nn.Module) -> bool:
    """Whether to lay images out channels last: what is wanted, or wherever there are 2-D convolutions.

    >>> channels_last(None, nn.Linear(1, 1))
    False
    """
    return any(isinstance(module, nn.Conv2d) for module in model.modules()) if wanted is None else wanted


def compiled(wanted: bool | None) -> bool:
    """Whether to compile: what is wanted, or on a GPU; on a CPU a short run does not earn the compile time back.

    >>> compiled(True)
    True
    """
    return torch.cuda.is_available() if wanted is None else wanted
