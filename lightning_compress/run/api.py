"""The Python interface: compress a model of yours, load a packed one."""

import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_compress.core import shrunk
from lightning_compress.core.inputs import rows
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.task import Task, by_kind
from lightning_compress.distill.teacher import Teacher
from lightning_compress.export import onnx, packed
from lightning_compress.module import OptimizerFactory, SchedulerFactory
from lightning_compress.run import config, device, measure, ranks, targets
from lightning_compress.run.fit import Job, Phase, fit
from lightning_compress.run.result import FILE, Result
from lightning_compress.tracking.provenance import provenance


def compress(
    model: nn.Module,
    data: Any,
    methods: Sequence[Method],
    *,
    epochs: int = 10,
    folder: str | Path = "runs/compress",
    task: Task | None = None,
    optimizer: OptimizerFactory = torch.optim.Adam,
    scheduler: SchedulerFactory | None = None,
    seed: int = 0,
    test: bool = False,
    resume: bool = False,
    **trainer: Any,
) -> Result:
    """Train `model` under `methods` and write, check and measure the deployed files in `folder`.

    `data` is a LightningDataModule whose batches are `(inputs, targets, ...)`, several inputs as a tuple or by name;
    those of this package know their number of classes, others need a `task`. `trainer` takes arguments of
    `pl.Trainer`. Model and methods are left as they are. With `resume` a run that was stopped in `folder` goes on, and
    a finished one is returned.

    Raises:
        ValueError: `folder` holds a run already, no task for data that does not know its classes, or what the methods
            object to.

    Example:
        >>> from lightning_compress.data.digits import Digits
        >>> from lightning_compress.models.small_conv import SmallConv
        >>> from lightning_compress.prune.method import Prune
        >>> import tempfile
        >>> result = compress(SmallConv(width=0.25), Digits(), [Prune(0.5)], epochs=1, folder=tempfile.mkdtemp())
        >>> result.cost["packed_bytes"] < 4 * result.cost["params"]
        True
    """
    home = Path(folder)
    if resume and (home / FILE).exists():
        return Result.load(home)
    if not resume and ((home / FILE).exists() or any(home.glob("phase*"))):
        raise ValueError(f"{home} holds an earlier run: choose another folder=, or resume=True to go on with it")
    pl.seed_everything(seed, verbose=False)
    home.mkdir(parents=True, exist_ok=True)
    inputs = _inputs(data)
    job = Job(
        build=lambda: deepcopy(model),
        data=data,
        task=task or _task(data),
        phases=[Phase(lambda: deepcopy(list(methods)), epochs)],
        optimizer=optimizer,
        scheduler=scheduler,
        example=rows(inputs, slice(2)),
        folder=home,
        trainer={"precision": device.precision(None), **trainer},
        speed={"compile_model": device.compiled(None), "channels_last": device.channels_last(None, model)},
    )
    teachers = [getattr(method, "teacher", None) for method in methods]
    hashes = dict.fromkeys(teacher.hash for teacher in teachers if isinstance(teacher, Teacher))
    known = {"teacher": ", ".join(hashes)} if hashes else {}
    return _finish(job, inputs, seed, splits=("val", "test") if test else ("val",), known=known)


def _finish(job: Job, inputs: Any, seed: int, *, splits: Sequence[str], known: dict[str, str]) -> Result:
    started = time.time()
    compact, history = fit(job)
    ranks.part()
    if not ranks.is_first():
        ranks.wait_for(job.folder / FILE)
        return Result.load(job.folder)
    files, checks, cost, layers = measure.measure(
        compact, job.build, inputs, job.folder, architecture=None, timing=measure.Timing()
    )
    metrics: dict[str, float] = {}
    for split in splits:
        loader = getattr(job.data, f"{split}_dataloader")()
        metrics |= measure.evaluate(compact.model, loader, job.task, split)
    result = Result(
        name=job.folder.name,
        metrics=metrics,
        cost=cost,
        layers=layers,
        seed=seed,
        provenance={**provenance(), **known},
        wall_seconds=time.time() - started,
        files=files,
        checks=checks,
        history=history,
    )
    result.save(job.folder)
    return result


def _task(data: Any) -> Task:
    if not hasattr(data, "num_classes"):
        raise ValueError(
            "compress: the data module has no num_classes; give a task, "
            "for example task=lightning_compress.core.task.classification(10)"
        )
    return by_kind(getattr(data, "task_kind", "classification"), data.num_classes)


def _inputs(data: Any) -> Any:
    data.prepare_data()
    data.setup("fit")
    return tree_map(lambda each: each.cpu().contiguous(), next(iter(data.val_dataloader()))[0])


def load(file: str | Path, model: nn.Module | None = None, allow: Sequence[str] = ()) -> nn.Module:
    """The model in a packed file, ready to run: bit for bit what was measured.

    `model` is the base network, needed when the file was written from an object; `allow` names packages of yours that
    the file's architecture may come from. Of a run's `weights.pt`, a plain `state_dict`, the model is made by the
    edits in `edits.json` beside it (`core/shrunk.py`).

    Raises:
        ValueError: the file is damaged, or names code that is not allowed.
    """
    if Path(file).suffix == ".pt":
        if model is None:
            raise ValueError(f"{file} holds tensors only: call load(file, model=the base network)")
        return shrunk.load(Path(file).parent, deepcopy(model))
    unpacked = packed.read(Path(file))
    return packed.rebuild(unpacked, deepcopy(model) if model is not None else _base(unpacked, file, allow))


def export(file: Path, to: Path, allow: Sequence[str] = ()) -> Path:
    """Write the ONNX file of a packed model that says which network it is of; the path written.

    `allow` names packages of yours that the network may come from.

    Raises:
        ValueError: the file is damaged, or was written from an object.
    """
    compact, example = unpack(file, allow)
    return onnx.export(compact, example, to)


def unpack(file: Path, allow: Sequence[str] = ()) -> tuple[Compact, Tensor]:
    """The finalized model in a packed file that says which network it is of, and two inputs of the right shape, ones.

    Raises:
        ValueError: the file is damaged, was written from an object, or its network does not take one tensor.
    """
    unpacked = packed.read(file)
    model = packed.rebuild(unpacked, _base(unpacked, file, allow))
    about = unpacked.architecture or {}
    dtype = {"int64": torch.int64, "float32": torch.float32}.get(about.get("input_dtype", "float32"))
    if dtype is None or "input_shape" not in about:
        raise ValueError(
            f"{file} does not say what its network takes: expected one tensor of floats or token ids; the ONNX file "
            "of a network of several is written where it was trained, by compress or Compress.save"
        )
    return Compact(model, unpacked.tensors, unpacked.edits), torch.ones(2, *about["input_shape"], dtype=dtype)


def _base(unpacked: packed.Packed, file: str | Path, allow: Sequence[str]) -> nn.Module:
    node = (unpacked.architecture or {}).get("model")
    if node is None:
        raise ValueError(f"{file} does not say which network it is of: call load(file, model=the base network)")
    for _, inner in targets.nodes(node):
        targets.resolve(inner["_target_"], targets.allowed(allow, targets.NETWORKS))
    base = config.build(node, allow)
    if not isinstance(base, nn.Module):
        raise ValueError(f"{file} names {node['_target_']!r}, which is not a network")
    return base
