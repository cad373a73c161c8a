"""The teacher's outputs on all of the training data, computed once and shared by the runs of a study."""

import hashlib
import os
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_compress.distill.teacher import fingerprint
from lightning_compress.run import device
from lightning_compress.run.targets import Config, ConfigError

_BATCH = 500
_PROBES = 64
_NAME = "outputs"


def teacher_outputs(config: Config, data: Any, teacher: nn.Module) -> Tensor | None:
    """The outputs of `teacher` for every training sample, float32 [samples, ...], from the folder `teacher.outputs`.

    Whoever comes first writes the file, in one pass in the order of the samples, while the others wait; so all runs
    learn from the same numbers, whatever their batches, and a resumed run from those that it began with. The file goes
    by the teacher's hash and by what it was shown. None where the configuration names no folder.

    Raises:
        ConfigError: the data does not say what its training samples are.
    """
    folder = config["teacher"]["outputs"]
    if folder is None:
        return None
    if not hasattr(data, "train_part") or not hasattr(data, "normalize"):
        raise ConfigError(
            f"teacher.outputs needs data with train_part and normalize, which {type(data).__name__} has not; "
            "write teacher.outputs=null"
        )
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"teacher-{fingerprint(teacher)}-{_digest(data)}.safetensors"
    with filelock.FileLock(f"{path}.lock"):
        if not path.exists():
            part = path.with_suffix(".part")
            save_file({_NAME: _compute(teacher, data, config["trainer"].get("accelerator", "auto"))}, part)
            os.replace(part, path)
    return _read(path)


def _read(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            outputs: Tensor = file.get_tensor(_NAME)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error
    return outputs


def _inputs(data: Any, index: Tensor) -> Tensor:
    inputs: Tensor = data.normalize(data.train_part.fetch(index))
    return inputs


def _digest(data: Any) -> str:
    """Of what the samples are, in order: every label, and the inputs of samples evenly spread over them."""
    labels = data.train_part.labels
    probes = torch.linspace(0, len(labels) - 1, min(_PROBES, len(labels))).long()
    digest = hashlib.sha256(labels.numpy().tobytes())
    inputs = _inputs(data, probes)
    digest.update(f"{tuple(inputs.shape)}".encode())
    digest.update(inputs.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _compute(teacher: nn.Module, data: Any, accelerator: str) -> Tensor:
    place = torch.device(device.where(accelerator))
    teacher = teacher.eval().to(place)
    parts = torch.split(torch.arange(len(data.train_part.labels)), _BATCH)
    outputs = torch.cat([teacher(_inputs(data, index).to(place)).float().cpu() for index in parts])
    teacher.cpu()
    return outputs.contiguous()
