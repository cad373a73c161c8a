"""Files of models side by side, on every runtime that is asked for."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lightning_compress.export import chooser, onnx, runtime
from lightning_compress.run import api


def compare(
    files: Sequence[Path],
    *,
    runtimes: Sequence[str] = chooser.DEFAULT,
    batch_size: int = 64,
    threads: int = 1,
    rounds: int = 50,
    allow: Sequence[str] = (),
) -> chooser.Race:
    """Latency of ONNX files and of packed ones, by the file's path and the runtime, on random inputs.

    The inputs have the shape that the first file declares. A packed file is exported and also runs in PyTorch; `allow`
    names packages of yours that its network may come from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged, or a runtime is unknown or not on this machine.
    """
    found = chooser.here(runtimes)
    with TemporaryDirectory() as folder:
        models = {str(path): _deployable(path, Path(folder) / f"{n}.onnx", allow) for n, path in enumerate(files)}
        shape = runtime.input_shape(next(iter(models.values())).onnx)
        inputs = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
        return chooser.race(models, found, inputs.numpy(), threads=threads, rounds=rounds)


def _deployable(file: Path, to: Path, allow: Sequence[str]) -> chooser.Deployable:
    if file.suffix != ".lcz":
        return chooser.Deployable(file)
    compact, shape = api.unpack(file, allow)
    return chooser.Deployable(onnx.export(compact, torch.zeros(2, *shape), to), compact)
