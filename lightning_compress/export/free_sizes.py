"""Sizes of inputs that a traced model leaves free."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

#: What the ONNX exporter has forms of its own for, in which the length stays free.
_RECURRENT = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)


@contextmanager
def kept() -> Iterator[None]:
    """Have PyTorch's ONNX exporter use its own forms of recurrent layers inside, and leave none of them behind.

    It puts them in place of the usual ones, but those that were looked up in the export before (2.13 keeps what it has
    found) it uses still, and takes the length of the example for that of all texts.

    >>> with kept():
    ...     len(torch.ops.aten.gru.input._dispatch_cache)
    0
    """
    try:
        _forget()
        yield
    finally:
        _forget()


def _forget() -> None:
    for call in _RECURRENT:
        call._dispatch_cache.clear()


def check(shape: Sequence[Any], free: Mapping[int, str]) -> None:
    """See that of the `shape` of an exported input, numbers and names, the dimensions `free` are not numbers.

    Raises:
        ValueError: a size of the example has become one that all inputs must have.

    >>> check(["batch", 16], {0: "batch"})
    """
    fixed = [f"{name}={shape[dim]}" for dim, name in free.items() if isinstance(shape[dim], int)]
    if fixed:
        raise ValueError(
            f"the ONNX file would take inputs of {', '.join(fixed)} alone; write the model so that nothing in it "
            "depends on the example's sizes, or export with dynamic_batch=False"
        )
