"""Small image sets on disk, and the real ones where they are."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def data_root() -> Path:
    root = os.environ.get("LIGHTNING_COMPRESS_DATA")
    if not root:
        pytest.skip("LIGHTNING_COMPRESS_DATA is unset: the real data sets are needed")
    return Path(root)


@pytest.fixture
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def write_parquet() -> Callable[..., None]:
    def write(
        path: Path, pictures: list[Any], labels: list[Any], names: list[str] | None, image: str = "image"
    ) -> None:
        label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        features = datasets.Features({image: datasets.Image(), "label": label})
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {image: [Image.fromarray(p) for p in pictures], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)

    return write


@pytest.fixture
def parquet_folder(tmp_path: Path, pixels: np.ndarray[Any, Any], write_parquet: Callable[..., None]) -> Path:
    """16 train and 4 test pictures of 6x5 RGB in two classes."""
    folder = tmp_path / "set"
    labels = [i % 2 for i in range(20)]
    write_parquet(folder / "train.parquet", list(pixels[:16]), labels[:16], ["cat", "dog"])
    write_parquet(folder / "test.parquet", list(pixels[16:]), labels[16:], ["cat", "dog"])
    return folder
