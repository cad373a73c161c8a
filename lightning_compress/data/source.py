"""Labelled images or audio from the public hub or a local folder, through `datasets`."""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, final

import datasets
import numpy as np
import torch
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_compress.data.decode import Cells, Decoder
from lightning_compress.data.samples import Samples

_AS_THEY_ARE = Decoder()
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@final
@dataclass(frozen=True)
class Columns:
    """Column names; None means the only column of pictures or audio, and `label`.

    >>> Columns(image="img").label is None
    True
    """

    image: str | None = None
    label: str | None = None


@final
@dataclass(frozen=True)
class Rows:
    """Samples left on disk and decoded when fetched: a `Part` of a set that does not fit in memory.

    `positions` int64 `[N]` are the rows of `table` that belong to it, `shape` is (C, H, W) of all of them and
    `place` says in error messages where they come from.
    """

    table: datasets.Dataset
    decoder: Cells
    shape: tuple[int, ...]
    place: str
    positions: Tensor
    labels: Tensor
    names: list[str]

    def fetch(self, index: Tensor) -> Tensor:
        """Decodes the samples at the positions `index`, uint8 or float32 `[B, C, H, W]`.

        Raises:
            ValueError: if one cannot be decoded or has another shape than the first of the set.
        """
        rows = self.positions[index].tolist()
        return torch.from_numpy(np.stack([self._decode(*item) for item in zip(rows, self._cells(rows), strict=True)]))

    def subset(self, index: Tensor) -> "Rows":
        """The part that holds only the positions `index`, in that order."""
        return replace(self, positions=self.positions[index], labels=self.labels[index])

    def labelled(self, labels: Tensor) -> "Rows":
        """The same samples with other labels, int64 `[N]` or `[N, heads]`."""
        return replace(self, labels=labels)

    def _cells(self, rows: list[int]) -> Iterable[Any]:
        cells: Iterable[Any] = self.table[rows][self.table.column_names[0]]
        return cells

    def _decode(self, row: int, cell: Any) -> np.ndarray[Any, Any]:
        array = _decode(self.decoder, cell, f"{self.place}, row {row}")
        if array.shape != self.shape:
            raise ValueError(
                f"{self.place}, row {row}: (channels, height, width) is {array.shape}, but {self.shape} in the "
                "first row; give size=[height, width] and channels=1 or 3 to make them alike"
            )
        return array


def locate(source: str, root: str | None) -> str:
    """The source itself or, where a data root is given, the folder of its last name there; a whole path stays.

    >>> locate("ylecun/mnist", None), locate("ylecun/mnist", "/data"), locate("/mine/films", "/data")
    ('ylecun/mnist', '/data/mnist', '/mine/films')
    """
    if root is None or Path(source).expanduser().is_absolute():
        return source
    # Absolute, so that a missing folder is never taken for a hub id.
    return str(Path(root).expanduser().absolute() / Path(source).name)


def open_split(
    source: str,
    split: str,
    *,
    columns: Columns = Columns(),
    decoder: Cells = _AS_THEY_ARE,
    cache_dir: str | None = None,
) -> Rows:
    """Opens one split of a labelled image set; cells are decoded only when fetched.

    `source` is a folder with Parquet files named after their split, a folder of pictures with one folder per
    class (with or without `train` and `test` folders above), or an id on the public hub. `cache_dir` is where
    `datasets` keeps its Arrow files; its own default if None.

    Raises:
        FileNotFoundError: if there is no such folder and no such set on the hub.
        ValueError: if a file is corrupt, or split, column or labels are not as asked for.
    """
    table = _table(source, split, cache_dir)
    place = f"{source} ({split})"
    column = _input_column(table, columns.image, decoder, place)
    labels, names = _labels(table, columns.label or "label", place)
    feature = table.features[column]
    if isinstance(feature, datasets.Image | datasets.Audio):
        table = table.cast_column(column, type(feature)(decode=False))
    table = table.select_columns([column])
    first = _decode(decoder, table[0][column], f"{place}, row 0")
    return Rows(table, decoder, first.shape, place, torch.arange(len(labels)), labels, names)


def read_split(
    source: str,
    split: str,
    *,
    columns: Columns = Columns(),
    decoder: Cells = _AS_THEY_ARE,
    cache_dir: str | None = None,
) -> Samples:
    """Reads one split into memory; with a `cache_dir` the decoded arrays are kept there for the next time.

    Inputs are uint8 (float32 for float columns) `[N, C, H, W]`, labels int64 `[N]`. Arguments and errors are
    those of `open_split`.
    """
    rows = open_split(source, split, columns=columns, decoder=decoder, cache_dir=cache_dir)
    if cache_dir is None:
        return _decode_all(rows)
    # The names of the Arrow files hold a hash of the source files, so changed data gets another key.
    key = json.dumps([str(rows.table.cache_files), rows.table.column_names, repr(columns), repr(decoder)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = Path(cache_dir) / f"{Path(source).name}-{split}-{digest}.safetensors"
    if not path.exists():
        _store(_decode_all(rows), path)
    with safe_open(path, framework="pt") as file:
        return Samples(file.get_tensor("inputs"), file.get_tensor("labels"), rows.names)


def read_texts(
    source: str, split: str, column: str, *, label: str | None = None, cache_dir: str | None = None
) -> tuple[list[str], Tensor, list[str]]:
    """Reads the texts of one split, their labels int64 `[N]` and the names of the classes.

    Arguments and errors are those of `open_split`.
    """
    table = _table(source, split, cache_dir)
    place = f"{source} ({split})"
    labels, names = _labels(table, label or "label", place)
    values = table.data.column(_present(table, column, "text_column", place))
    if values.null_count or "string" not in str(values.type):
        raise ValueError(
            f"{place}: texts in {column!r} must be strings and none may be missing, got {values.type} with "
            f"{values.null_count} of {len(values)} missing"
        )
    return values.to_pylist(), labels, names


def read_column(source: str, split: str, name: str, argument: str, *, cache_dir: str | None = None) -> list[Any]:
    """Another column of a split, row by row, which `argument` names; errors are those of `open_split`."""
    table = _table(source, split, cache_dir)
    values: list[Any] = table.data.column(_present(table, name, argument, f"{source} ({split})")).to_pylist()
    return values


def _decode_all(rows: Rows, chunk: int = 1000) -> Samples:
    inputs = torch.cat([rows.fetch(index) for index in torch.split(torch.arange(len(rows.labels)), chunk)])
    return Samples(inputs, rows.labels, rows.names)


def _store(samples: Samples, path: Path) -> None:
    """Writes under another name first: parallel runs may share the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    save_file({"inputs": samples.inputs, "labels": samples.labels}, partial)
    partial.replace(path)


def _table(source: str, split: str, cache_dir: str | None) -> datasets.Dataset:
    """The asked split as a table, cells still encoded; its Arrow files go into a folder of their own in `cache_dir`."""
    folder = Path(source).expanduser()
    arrow = None if cache_dir is None else str(Path(cache_dir) / "arrow")
    options: dict[str, Any] = {"path": source, "cache_dir": arrow}
    if folder.is_dir():
        kind = "parquet" if any(folder.rglob("*.parquet")) else "imagefolder"
        options |= {"path": kind, "data_dir": str(folder)}
    elif not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(f"{source} is no folder (and no hub id, which looks like 'owner/name')")
    datasets.disable_progress_bars()  # they would mix with the lines that a run prints
    # A folder would be reported too, and without a network each reading waits seconds for a name server.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        builder = datasets.load_dataset_builder(**options)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{source} is neither a local folder nor a data set that could be reached on the hub: {error}"
        ) from error
    _check_split(source, split, builder)
    if options["path"] == "parquet":  # one split alone; picture folders take their class names from all splits
        del options["data_dir"]
        options["data_files"] = {split: list(builder.config.data_files[split])}
    try:
        return datasets.load_dataset(**options, split=split)
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"{source} ({split}) cannot be read: {error.__cause__ or error}") from error


def _check_split(source: str, split: str, builder: datasets.DatasetBuilder) -> None:
    present = sorted(str(name) for name in builder.config.data_files or builder.info.splits)
    if split not in present:
        raise ValueError(f"{source} has no split {split!r}; it has {present}{_nearest(split, present)}")


def _encoded(table: datasets.Dataset) -> list[str]:
    """Columns of pictures or audio: declared as such, or laid out as one (bytes and path)."""
    return [
        name
        for name, feature in table.features.items()
        if isinstance(feature, datasets.Image | datasets.Audio)
        or (isinstance(feature, dict) and {*feature} == {"bytes", "path"})
    ]


def _input_column(table: datasets.Dataset, wanted: str | None, decoder: Cells, place: str) -> str:
    if wanted is not None:
        return _present(table, wanted, decoder.argument, place)
    encoded = _encoded(table)
    if len(encoded) != 1:
        raise ValueError(
            f"{place} has {len(encoded)} {decoder.kind} columns among {table.column_names}: name one with "
            f"{decoder.argument}="
        )
    return encoded[0]


def _present(table: datasets.Dataset, name: str, argument: str, place: str) -> str:
    if name not in table.column_names:
        raise ValueError(
            f"{place} has no column {name!r}; it has {table.column_names}{_nearest(name, table.column_names)}: "
            f"set {argument}="
        )
    return name


def _nearest(name: str, choices: Sequence[str]) -> str:
    close = get_close_matches(name, choices, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _labels(table: datasets.Dataset, wanted: str, place: str) -> tuple[Tensor, list[str]]:
    """Checked labels and class names; classes without a name are called by their number."""
    column = _present(table, wanted, "label_column", place)
    values = table.data.column(column)
    if values.null_count or not str(values.type).startswith(("int", "uint")):
        raise ValueError(
            f"{place}: labels in {column!r} must be integers and none may be missing, got {values.type} with "
            f"{values.null_count} of {len(values)} missing"
        )
    labels = torch.from_numpy(values.to_numpy().astype(np.int64))
    feature = table.features[column]
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    count = int(labels.max()) + 1 if names is None else len(names)
    if labels.min() < 0 or labels.max() >= count:
        raise ValueError(
            f"{place}: labels in {column!r} run from {int(labels.min())} to {int(labels.max())}, expected 0 to "
            f"{count - 1}; a split without published labels cannot be used"
        )
    return labels, names or [str(number) for number in range(count)]


def _decode(decoder: Cells, cell: Any, place: str) -> np.ndarray[Any, Any]:
    try:
        return decoder(cell)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
