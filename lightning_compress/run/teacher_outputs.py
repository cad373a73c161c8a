"""The teacher's outputs on all of the training data, computed once and shared by the runs of a study."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_compress.data.labelled import LabelledData
from lightning_compress.data.views import BLOCK
from lightning_compress.distill.teacher import fingerprint
from lightning_compress.run import device
from lightning_compress.run.targets import Config, ConfigError

_NAME = "outputs"


def teacher_outputs(config: Config, data: Any, teacher: nn.Module) -> list[Tensor]:
    """The outputs of `teacher` for every training sample, float32 [samples, ...] for each view, from `teacher.outputs`.

    Whoever comes first writes the files in that folder, one for each random view of the samples (one for all, where no
    random transform touches them), in one pass in the order of the samples, while the others wait; so all runs learn
    from the same numbers, whatever their batches, and a resumed run from those that it began with. A file goes by the
    teacher's hash and by what it was shown; it is mapped into memory. Nothing where the configuration names no folder.

    Raises:
        ConfigError: the data does not say what its training samples are, or shows ever new views of them.
    """
    folder = config["teacher"]["outputs"]
    if folder is None:
        return []
    if not isinstance(data, LabelledData):
        raise ConfigError(
            f"teacher.outputs needs data that is a LabelledData, which {type(data).__name__} is not; "
            "write teacher.outputs=null"
        )
    if data.views is None:
        raise ConfigError(
            "teacher.outputs needs views of the samples that come back, and this data draws new ones in every epoch; "
            "write data.views=4, say, or teacher.outputs=null with teacher.cache=false"
        )
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    numbers = range(1, data.views + 1) if data.views else [0]
    hashed = fingerprint(teacher)
    return [_view(place / f"teacher-{hashed}", data, teacher, view, config) for view in numbers]


def _view(place: Path, data: LabelledData, teacher: nn.Module, view: int, config: Config) -> Tensor:
    path = place.with_name(f"{place.name}-{data_digest(data, view)}.safetensors")
    with filelock.FileLock(f"{path}.lock"):
        if not path.exists():
            part = path.with_suffix(".part")
            save_file({_NAME: _compute(teacher, data, view, config["trainer"].get("accelerator", "auto"))}, part)
            os.replace(part, path)
    return _read(path)


def _read(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            outputs: Tensor = file.get_tensor(_NAME)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error
    return outputs


def data_digest(data: LabelledData, view: int = 0) -> str:
    """Of what the train samples are, in order: every label, and the inputs of some blocks spread over them.

    >>> from lightning_compress.data.digits import Digits
    >>> data_digest(Digits()) == data_digest(Digits(batch_size=8)) != data_digest(Digits(split_seed=1))
    True
    """
    labels = data.train_part.labels
    found = hashlib.sha256(labels.numpy().tobytes())
    for number in sorted({0, _blocks(data) // 2, _blocks(data) - 1}):
        inputs = data.block(number, view)
        found.update(f"{tuple(inputs.shape)}".encode())
        found.update(inputs.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _blocks(data: LabelledData) -> int:
    return math.ceil(data.num_train / BLOCK)


@torch.no_grad()
def _compute(teacher: nn.Module, data: LabelledData, view: int, accelerator: str) -> Tensor:
    place = torch.device(device.where(accelerator))
    teacher = teacher.eval().to(place)
    outputs = [teacher(data.block(number, view).to(place)).float().cpu() for number in range(_blocks(data))]
    teacher.cpu()
    return torch.cat(outputs).contiguous()
