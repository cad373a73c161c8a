"""Files of models side by side, on every runtime that is asked for."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

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
        inputs = runtime.stand_in(next(iter(models.values())).onnx, batch_size)
        return chooser.race(models, found, inputs, threads=threads, rounds=rounds)


def _deployable(file: Path, to: Path, allow: Sequence[str]) -> chooser.Deployable:
    if file.suffix != ".lcz":
        return chooser.Deployable(file)
    compact, example = api.unpack(file, allow)
    return chooser.Deployable(onnx.export(compact, example, to), compact)
