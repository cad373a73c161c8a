"""Whether the rows of a table can run: a few steps of each row's experiment on a handful of made-up pictures.

All that the run has is there: its network, methods, phases and schedules, its teacher, the packed file. No number of it
is a result, and no record is written.
"""

import io
import time
import wave
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import filelock
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lightning_compress.launch.drain import ends
from lightning_compress.launch.job import Job, Launcher
from lightning_compress.run.config import compose
from lightning_compress.run.targets import Config
from lightning_compress.run.train import train
from lightning_compress.tables import engine
from lightning_compress.tables.schema import Spec

_TARGET = "lightning_compress.tables.smoke:row"
_STEPS, _BATCH = 3, 8
#: Of a recipe's learning rate: beside a teacher that learned nothing, whose features are huge, it diverges at once.
_SLOWER = 1e-6
#: Samples of a class in each part; only the first classes and the last one have any.
_SAMPLES, _CLASSES = {"train": 8, "test": 2}, 4
#: Height, width, channels and classes of data sets, by the last part of their name, and of all others.
_SHAPES = {
    "mnist": (28, 28, 1, 10),
    "cifar10": (32, 32, 3, 10),
    "cifar100": (32, 32, 3, 100),
    "tiny-imagenet": (64, 64, 3, 200),
    "imagenet-1k": (224, 224, 3, 1000),
}
_SHAPE = (32, 32, 3, 10)
#: Arguments of methods that count what is done in their preparation.
_REPEATED = ("adaround", "calibration_batches", "iterations", "probes")
_IMAGES, _SOUNDS = "lightning_compress.data.vision.ImageData", "lightning_compress.data.speech.SpeechData"


def smoke(
    specs: Sequence[Spec],
    launcher: Launcher,
    say: Callable[[str], object],
    only: Sequence[str] = (),
    folders: Sequence[Path] = (),
) -> list[str]:
    """Try every row that has an experiment, or those called `only`; the names of those that fail.

    `folders` are searched for experiments. The launcher is closed in the end.
    """
    wrong = []
    with closing(launcher), TemporaryDirectory(prefix="smoke-", ignore_cleanup_errors=True) as folder:
        jobs = deque(_jobs(specs, Path(folder), only, [str(each.resolve()) for each in folders]))
        for job, outcome in ends(jobs, launcher):
            if outcome.cause == "done":
                say(f"pass  {job.name}, {outcome.value:.1f} s")
            else:
                wrong.append(job.name)
                say(f"FAIL  {job.name}: {outcome.detail}")
    return wrong


def _jobs(specs: Sequence[Spec], folder: Path, only: Sequence[str], folders: Sequence[str]) -> list[Job]:
    found = []
    for spec in specs:
        for one in spec.rows.values():
            if one.experiment is not None and (not only or one.name in only):
                place = folder / spec.name / one.name
                overrides = [f"seed={one.seeds[0]}", *engine.overrides(spec, one)]
                arguments = {"overrides": overrides, "folder": str(place), "folders": folders}
                found.append(Job(f"{spec.name}/{one.name}", _TARGET, arguments, place))
    return found


def row(overrides: Sequence[str], folder: str, folders: Sequence[str] = ()) -> float:
    """Train, finalize, write, read back and evaluate a tiny run of `overrides` in `folder`; the seconds it took.

    What several runs need, data and teachers, goes into the folders above.

    Raises:
        ValueError: the run cannot be as it is written.
    """
    began = time.monotonic()
    place = Path(folder)
    train(shrunk(compose(overrides, folders=[Path(each) for each in folders]), place.parent), place)
    return time.monotonic() - began


def shrunk(config: Config, folder: Path) -> Config:
    """A configuration with pictures that are made up and the least of what can be counted.

    Phases stay, of an epoch each; no weights are read from files. Teachers go to `folder`, data to the one above, for
    the other runs that need them.
    """
    teacher = config["teacher"]
    return {
        **config,
        "data": _tiny(config["data"], folder.parent / "data"),
        "methods": _brief(config["methods"]),
        "weights": None,
        "epochs": min(config["epochs"], 1),
        "phases": [_short(phase, folder.parent / "data") for phase in config["phases"]],
        "checkpoint_every": 1000,
        "validate_every": 1,
        "optimizer": {**config["optimizer"], "lr": _SLOWER * config["optimizer"]["lr"]},
        "trainer": {"accelerator": "cpu", "devices": 1, "limit_train_batches": _STEPS},
        "speed": {"threads": 1, "precision": "32-true", "channels_last": None, "compile": False},
        "teacher": {
            **teacher,
            "weights": None,
            "members": {name: {**member, "weights": None} for name, member in teacher["members"].items()},
            "epochs": 1,
            "bf16": False,
            "folder": str(folder / "teachers"),
            "outputs": str(folder / "outputs") if teacher["outputs"] else None,
        },
        "measure": {**config["measure"], "latency": False, "onnx": False, "table": None, "reference": None},
        "wandb": {**config["wandb"], "mode": "disabled"},
    }


def _brief(node: Any) -> Any:
    """The nodes of methods with few repetitions of what they do before training."""
    if isinstance(node, list):
        return [_brief(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: min(value, 2) if key in _REPEATED and isinstance(value, int) else _brief(value)
        for key, value in node.items()
    }


def _short(phase: Config, folder: Path) -> Config:
    """A phase of an epoch at most, whose own data, if it has some, is tiny."""
    data = {"data": _tiny(phase["data"], folder)} if phase.get("data") else {}
    return {**phase, **({"epochs": min(phase["epochs"], 1)} if "epochs" in phase else {}), **data}


def _tiny(node: Config, folder: Path) -> Config:
    """The node of a data set with small batches, and pictures of ours, kept in `folder`, where it reads some."""
    node = {**node, "batch_size": _BATCH}
    if node["_target_"] == _SOUNDS:
        return {**node, "source": str(_speak(folder, node)), "root": None, "cache_dir": None}
    if node["_target_"] != _IMAGES:
        return node
    name, test = Path(node["source"]).name, node.get("test", "test")
    columns = node.get("image_column") or "image", node.get("label_column") or "label"
    source = folder / "-".join((name, *columns, str(test)))
    for split in ("train", test) if isinstance(test, str) else ("train",):
        _draw(source / f"{split}.parquet", columns, _SHAPES.get(name, _SHAPE))
    where = {"source": str(source), "root": None, "cache_dir": str(folder / "cache"), "workers": 0}
    return {key: value for key, value in node.items() if key != "limit"} | where


def _draw(path: Path, columns: tuple[str, str], shape: tuple[int, int, int, int]) -> None:
    """Write pictures of noise with their labels, unless they are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path.parent}.lock"):
        if path.exists():
            return
        *size, channels, classes = shape
        labels = [*range(min(_CLASSES, classes - 1)), classes - 1] * _SAMPLES.get(path.stem, _SAMPLES["test"])
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), *size, channels), dtype=np.uint8)
        cells = [{"bytes": _png(each), "path": None} for each in pixels]
        pd.DataFrame(dict(zip(columns, (cells, labels), strict=True))).to_parquet(path)


def _speak(folder: Path, node: Config) -> Path:
    """Write noise as the recordings of words, unless they are there."""
    words, rate = node.get("words") or ["zero", "one"], node["features"]["rate"]
    place = folder / f"words-{rate}"
    with filelock.FileLock(f"{place}.lock"):
        if not place.exists():
            draw = np.random.default_rng(0)
            for word in (*words, "other", "_background_noise_"):
                (place / word).mkdir(parents=True)
                for number in range(_SAMPLES["train"]):
                    with wave.open(str(place / word / f"{number}.wav"), "wb") as file:
                        file.setparams((1, 2, rate, 0, "NONE", ""))
                        file.writeframes(draw.integers(-9999, 9999, rate, dtype=np.int16).tobytes())
            for number, part in enumerate(("validation", "testing")):
                listed = [f"{word}/{number}.wav" for word in (*words, "other")]
                (place / f"{part}_list.txt").write_text("\n".join(listed))
    return place


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "png")
    return file.getvalue()
