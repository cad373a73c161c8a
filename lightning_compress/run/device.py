"""Defaults that depend on the machine."""

from pathlib import Path

import torch
from torch import nn

#: Input channels that a kernel of oneDNN takes at once, at most.
_BLOCK = 16


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


def where(accelerator: str) -> str:
    """The device for what is computed beside training, given the trainer's accelerator.

    >>> where("cpu")
    'cpu'
    """
    return "cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def precision(wanted: str | None) -> str:
    """Lightning's precision: what is wanted, or bf16 where it is fast.

    >>> precision("32-true")
    '32-true'
    """
    return wanted or ("bf16-mixed" if has_fast_bf16() else "32-true")


def channels_last(wanted: bool | None, model: nn.Module) -> bool:
    """Whether to lay images out channels last: what is wanted, or wherever there are 2-D convolutions.

    Raises:
        ValueError: it is wanted, and a layer of `model` would be trained wrongly.

    >>> channels_last(None, nn.Linear(1, 1))
    False
    """
    unsafe = unsafe_channels_last(model)
    if wanted and unsafe is not None:
        raise ValueError(
            f"channels_last cannot be used with {unsafe!r}, a strided 1x1 convolution of fewer than {_BLOCK} input "
            "channels: its gradient is wrong on CPUs (oneDNN 6035); write speed.channels_last=false"
        )
    found = any(isinstance(module, nn.Conv2d) for module in model.modules()) and unsafe is None
    return found if wanted is None else wanted


def unsafe_channels_last(model: nn.Module) -> str | None:
    """Name of a layer whose weight gradient oneDNN 3.12 computes wrongly, or crashes on, in channels-last layout.

    The kernel of strided 1x1 convolutions writes past its workspace where there are fewer input channels than it
    takes at once: https://github.com/uxlfoundation/oneDNN/issues/6035.

    >>> unsafe_channels_last(nn.Sequential(nn.Conv2d(4, 8, 1, stride=2)))
    '0'
    """
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    strided = [(name, each) for name, each in convolutions if each.kernel_size == (1, 1) and max(each.stride) > 1]
    return next((name for name, each in strided if each.in_channels // each.groups < _BLOCK), None)


def compiled(wanted: bool | None) -> bool:
    """Whether to compile: what is wanted, or on a GPU; on a CPU a short run does not earn the compile time back.

    >>> compiled(True)
    True
    """
    return torch.cuda.is_available() if wanted is None else wanted
