"""Writing the folder that goes to another device, and seeing that it computes what PyTorch computed."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_compress.core.files import sha256, write_json, write_text
from lightning_compress.data.labelled import LabelledData
from lightning_compress.data.tokens import TOKENIZER
from lightning_compress.export import runtime, verify
from lightning_compress.export.files import KERNELS
from lightning_compress.run import build, measure
from lightning_compress.run.api import load
from lightning_compress.run.result import Result

CHECKSUMS, SAMPLES, PREPROCESSING, LABELS = "checksums.sha256", "samples.npz", "preprocessing.json", "labels.json"
SCRIPTS = ("predict.py", "measure.py")
_SAMPLES = 32
_TOKENS = "input = token ids of tokenizer.json, padded behind; any length up to input_shape"
_NEXT = "input = token ids of tokenizer.json, any length; output = logits of the token that follows each"
_README = """\
{title}: {numbers}.
On the device: pip install numpy onnxruntime, then `python predict.py --check` compares with PyTorch on real samples.
`python predict.py pixels.npy` classifies pixels as stored; preprocessing.json says what it does to them first.
`{measure}` times model.onnx beside dense.onnx and writes latency-<device>.json{back}.
`sha256sum -c checksums.sha256` checks the files; model.lcz is the same model packed, for lightning_compress.load.
"""


@final
@dataclass(frozen=True)
class About:
    """What the folder's README.txt says: a title, numbers by name, the command that takes a latency back."""

    title: str
    numbers: Mapping[str, str]
    back: str = ""


def write(run: Path, dense: Path, to: Path, about: About) -> dict[str, float]:
    """Write the deploy folder `to` of the finished run in `run`; returns the gap to PyTorch on real samples.

    `dense` is the ONNX file that the run's latency was measured beside. The samples come from the validation split and
    go through the folder's own preprocessing. The gap is that of the kernels which are further off; nothing is left in
    `to` where it is more than rounding explains. A folder that holds the same model is written again.

    Raises:
        ValueError: `run` holds no finished run or a damaged one, or `to` something else.
        FileNotFoundError: a file of the run is gone, or its data.
        ExportMismatchError: the gap is too large.
    """
    result = Result.load(run)
    named = [("onnx", measure.ONNX), ("packed", measure.PACKED)]
    named += [("tokenizer", TOKENIZER)] if "tokenizer" in result.files else []
    sources = {name: run / result.files.get(key, name) for key, name in named} | {measure.DENSE: dense}
    for path in sources.values():
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}: it was deleted or moved, train the run again")
    _refuse(to, sha256(sources[measure.ONNX]))
    model = load(sources[measure.PACKED], allow=result.config["allow"])
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to.parent, prefix=".deploy-") as name:
        staged = Path(name)
        for target, path in sources.items():
            shutil.copyfile(path, staged / target)
        for script in SCRIPTS:
            write_text(staged / script, (resources.files("lightning_compress.deploy") / script).read_text("utf-8"))
        gap = _real_samples(model, build.data(result.config), staged)
        write_text(staged / "README.txt", _readme(result, about))
        written = sorted(path.name for path in staged.iterdir())
        write_text(staged / CHECKSUMS, "".join(f"{sha256(staged / file)}  {file}\n" for file in written))
        to.mkdir(exist_ok=True)
        for file in (*written, CHECKSUMS):
            (staged / file).replace(to / file)
    return gap


def _refuse(to: Path, model: str) -> None:
    """See that nothing but a folder of the same model is written over."""
    if to.exists() and not to.is_dir():
        raise ValueError(f"{to} is a file: name another folder with --to")
    listed = to / CHECKSUMS
    same = listed.exists() and f"{model}  model.onnx\n" in listed.read_text(encoding="utf-8", errors="replace")
    if to.exists() and any(to.iterdir()) and not same:
        raise ValueError(f"{to} holds something else already: name another folder with --to, or empty it")


def _real_samples(model: nn.Module, data: Any, staged: Path) -> dict[str, float]:
    """Write samples with what PyTorch makes of them, preprocessing and labels; the gap of the exported model."""
    pixels, targets, facts = _pixels(data)
    inputs = _inputs(pixels, facts)
    limit = verify.tolerance(model)
    gaps = []
    for kernels in KERNELS:
        found = verify.compare(model, runtime.session(staged / measure.ONNX, kernels=kernels), inputs)
        verify.check(found, limit)
        gaps.append(found)
    arrays: dict[str, Any] = {"pixels": pixels.numpy(), "labels": targets.numpy(), "outputs": _outputs(model, inputs)}
    np.savez_compressed(staged / SAMPLES, **arrays, tolerance=limit)
    write_json(staged / PREPROCESSING, facts)
    names = getattr(data, "labels", None) or [str(number) for number in range(data.num_classes)]
    write_json(staged / LABELS, list(names))
    return {**max(gaps, key=lambda gap: gap["relative_error"]), "samples": len(pixels), "tolerance": limit}


def _pixels(data: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Validation samples as they are stored, spread over the split, their classes, and what preprocesses them.

    A data module of somebody else's gives batches that are preprocessed already: nothing is left to do to those.
    """
    if isinstance(data, LabelledData):
        part = data.val_part
        index = torch.linspace(0, len(part.labels) - 1, min(_SAMPLES, len(part.labels))).long()
        known = {key: value for key, value in data.preprocessing.items() if key != "input_size"}
        pixels, targets = part.fetch(index), part.labels[index]
    else:
        data.prepare_data()
        data.setup("fit")
        pixels, targets, *_ = next(iter(data.val_dataloader()))
        pixels, targets = pixels[:_SAMPLES].cpu().contiguous(), targets[:_SAMPLES].cpu()
        known = {"mean": [0.0], "std": [1.0], "pixel_scale": 1.0}
    tokens, formula = pixels.dtype == torch.int64, "input = (pixel * pixel_scale - mean) / std, mean and std by channel"
    if tokens:
        formula = _NEXT if targets.shape == pixels.shape else _TOKENS
    return pixels, targets, {
        **known,
        "formula": formula,
        "input_shape": list(pixels.shape[1:]),
        "layout": "NCHW" if pixels.dim() == 4 else "batch first",
        "pixel_dtype": str(pixels.dtype).removeprefix("torch."),
        "input_dtype": "int64" if tokens else "float32",
    }  # fmt: skip


def _inputs(pixels: Tensor, facts: Mapping[str, Any]) -> Tensor:
    """What the model takes, as predict.py makes it."""
    if pixels.dtype == torch.int64:
        return pixels
    shape = [-1] + [1] * (pixels.dim() - 2)
    mean, std = (torch.tensor(facts[name], dtype=torch.float64).view(shape) for name in ("mean", "std"))
    inputs: Tensor = pixels.float() * (facts["pixel_scale"] / std).float() + (-mean / std).float()
    return inputs


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> NDArray[Any]:
    outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError("a deploy folder is for one output, and this model has several heads: copy the run's files")
    found: NDArray[Any] = outputs.numpy()
    return found


def _readme(result: Result, about: About) -> str:
    options = result.config["measure"]
    return _README.format(
        title=about.title,
        numbers=", ".join(f"{name} {value}" for name, value in about.numbers.items()),
        measure=f"python measure.py --batch-size {options['batch_size']} --threads {options['threads']}",
        back=f"; `{about.back}` brings it back" if about.back else "",
    )
