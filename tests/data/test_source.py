import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from lightning_compress.data import source
from lightning_compress.data.decode import Decoder
from lightning_compress.data.source import Columns, locate, open_split, read_split

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Write = Callable[..., None]


def _picture_folder(root: Path, pixels: Pixels, prefixes: tuple[str, ...]) -> Path:
    for prefix in prefixes:
        for number, picture in enumerate(pixels):
            folder = root / prefix / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number:02}.png")
    return root


def _table(path: Path, **columns: Any) -> str:
    path.mkdir()
    pandas.DataFrame(columns).to_parquet(path / "train.parquet")  # no features declared, as foreign tools write
    return str(path)


def test_reads_what_was_written(parquet_folder: Path, pixels: Pixels) -> None:
    train, test = read_split(str(parquet_folder), "train"), read_split(str(parquet_folder), "test")
    assert train.inputs.dtype == torch.uint8
    assert np.array_equal(train.inputs.numpy(), pixels[:16].transpose(0, 3, 1, 2))
    assert np.array_equal(test.inputs.numpy(), pixels[16:].transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [0, 1] * 8
    assert train.labels.dtype == torch.int64
    assert train.names == ["cat", "dog"]


def test_a_folder_asks_no_host(parquet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def note(*host: Any, **_: Any) -> list[Any]:
        asked.append(host)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", note)
    read_split(str(parquet_folder), "train")
    assert asked == []


def test_grayscale_has_one_channel(tmp_path: Path, pixels: Pixels, write_parquet: Write) -> None:
    write_parquet(tmp_path / "gray" / "train.parquet", list(pixels[..., 0]), [0, 1] * 10, None)
    train = read_split(str(tmp_path / "gray"), "train")
    assert np.array_equal(train.inputs.numpy(), pixels[:, None, :, :, 0])
    assert train.names == ["0", "1"]


@pytest.mark.parametrize("name", ["train-00000-of-00002.parquet", "data/train-00000.parquet", "train/0000.parquet"])
def test_hub_file_names_are_found(tmp_path: Path, pixels: Pixels, write_parquet: Write, name: str) -> None:
    write_parquet(tmp_path / "set" / name, list(pixels), [0, 1] * 10, ["a", "b"])
    assert len(read_split(str(tmp_path / "set"), "train").labels) == 20


def test_undeclared_picture_column_is_found_by_its_layout(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    cell = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    folder = _table(tmp_path / "set", image=[cell, cell], label=[0, 1])
    assert np.array_equal(read_split(folder, "train").inputs[1].numpy(), pixels[0].transpose(2, 0, 1))


@pytest.mark.parametrize(("prefixes", "split"), [(("",), "train"), (("train", "test"), "test")])
def test_folder_of_pictures(tmp_path: Path, pixels: Pixels, prefixes: tuple[str, ...], split: str) -> None:
    folder = _picture_folder(tmp_path / "set", pixels, prefixes)
    part = read_split(str(folder), split)
    assert part.names == ["cat", "dog"]
    assert part.labels.tolist() == [0] * 10 + [1] * 10
    by_class = np.concatenate([pixels[::2], pixels[1::2]]).transpose(0, 3, 1, 2)
    assert np.array_equal(part.inputs.numpy(), by_class)


def test_class_missing_in_a_split_keeps_its_number(tmp_path: Path, pixels: Pixels) -> None:
    folder = _picture_folder(tmp_path / "set", pixels, ("train",))
    (folder / "test" / "dog").mkdir(parents=True)
    Image.fromarray(pixels[0]).save(folder / "test" / "dog" / "a.png")
    test = read_split(str(folder), "test")
    assert (test.labels.tolist(), test.names) == ([1], ["cat", "dog"])


def test_float_arrays_need_their_column_named(tmp_path: Path) -> None:
    folder = _table(tmp_path / "set", x=[[[0.5, 1.0]], [[2.0, 3.0]]], label=[0, 1])
    part = read_split(folder, "train", columns=Columns(image="x"))
    assert part.inputs.tolist() == [[[[0.5, 1.0]]], [[[2.0, 3.0]]]]
    assert part.inputs.dtype == torch.float32
    with pytest.raises(ValueError, match=r"0 picture columns among \['x', 'label'\].*image_column="):
        read_split(folder, "train")


def test_two_picture_columns_need_a_choice(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    cell = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "a.png"}
    folder = _table(tmp_path / "set", left=[cell], right=[cell], label=[0])
    with pytest.raises(ValueError, match=r"2 picture columns among .*'left', 'right', 'label'"):
        read_split(folder, "train")
    assert len(read_split(folder, "train", columns=Columns(image="right")).labels) == 1


def test_rows_fetch_any_order_and_subset(parquet_folder: Path, pixels: Pixels) -> None:
    rows = open_split(str(parquet_folder), "train").subset(torch.tensor([9, 3, 4]))
    assert np.array_equal(rows.fetch(torch.tensor([2, 0])).numpy(), pixels[[4, 9]].transpose(0, 3, 1, 2))
    assert rows.labels.tolist() == [1, 1, 0]


def test_second_reading_decodes_nothing(parquet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = str(tmp_path / "cache")
    first = read_split(str(parquet_folder), "train", cache_dir=cache)
    monkeypatch.setattr(source, "_decode_all", lambda rows: pytest.fail("decoded again"))
    again = read_split(str(parquet_folder), "train", cache_dir=cache)
    assert torch.equal(again.inputs, first.inputs)
    assert torch.equal(again.labels, first.labels)
    assert again.names == first.names
    assert not list(Path(cache).glob("*.partial"))


def test_cache_keeps_settings_apart(parquet_folder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    plain = read_split(str(parquet_folder), "train", cache_dir=cache)
    gray = read_split(str(parquet_folder), "train", cache_dir=cache, decoder=Decoder(channels=1))
    test = read_split(str(parquet_folder), "test", cache_dir=cache)
    assert [len(part.inputs[0]) for part in (plain, gray)] == [3, 1]
    assert len(test.labels) == 4


def test_changed_data_is_read_anew(parquet_folder: Path, tmp_path: Path, pixels: Pixels, write_parquet: Write) -> None:
    cache = str(tmp_path / "cache")
    read_split(str(parquet_folder), "train", cache_dir=cache)
    write_parquet(parquet_folder / "train.parquet", list(255 - pixels), [0, 1] * 10, ["cat", "dog"])
    changed = read_split(str(parquet_folder), "train", cache_dir=cache)
    assert np.array_equal(changed.inputs.numpy(), 255 - pixels.transpose(0, 3, 1, 2))


def test_only_the_asked_split_is_opened(parquet_folder: Path) -> None:
    (parquet_folder / "test.parquet").write_bytes(b"not parquet")
    assert len(read_split(str(parquet_folder), "train").labels) == 16


def test_corrupt_parquet_is_one_clear_error(parquet_folder: Path) -> None:
    whole = (parquet_folder / "train.parquet").read_bytes()
    (parquet_folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"set \(train\) cannot be read: .*[Pp]arquet"):
        read_split(str(parquet_folder), "train")


@pytest.mark.parametrize("missing", ["./nowhere", "/no/such/folder", "a/b/c", "~/no-such-folder"])
def test_missing_folder_is_not_looked_up_on_the_hub(missing: str) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_split(missing, "train")


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="doesn't contain any data files"):
        read_split(str(tmp_path), "train")


@pytest.mark.parametrize("error", [ConnectionError("offline"), datasets.exceptions.DatasetNotFoundError("unknown")])
def test_unreachable_hub_set_says_both_places(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def unreachable(**options: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(FileNotFoundError, match=r"owner/set is neither a local folder nor .* hub: (offline|unknown)"):
        read_split("owner/set", "train")


def test_hub_id_goes_to_the_hub(parquet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local_builder, local_load = datasets.load_dataset_builder, datasets.load_dataset

    def builder(path: str, **options: Any) -> Any:
        assert path == "owner/set"
        return local_builder("parquet", data_dir=str(parquet_folder), **options)

    def load(path: str, **options: Any) -> Any:
        assert path == "owner/set"
        return local_load("parquet", data_dir=str(parquet_folder), **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_split("owner/set", "test").labels) == 4


def test_unknown_split_and_columns_list_what_is_there(parquet_folder: Path) -> None:
    folder = str(parquet_folder)
    with pytest.raises(ValueError, match=r"no split 'tets'; it has \['test', 'train'\] \(did you mean 'test'"):
        read_split(folder, "tets")
    with pytest.raises(ValueError, match=r"no column 'img'; it has \['image', 'label'\].*set image_column="):
        read_split(folder, "train", columns=Columns(image="img"))
    with pytest.raises(ValueError, match=r"no column 'labels'.*\(did you mean 'label'.*set label_column="):
        read_split(folder, "train", columns=Columns(label="labels"))


@pytest.mark.parametrize(
    ("labels", "dtype", "message"),
    [
        ([0.0, 1.0], "float64", "must be integers and none may be missing, got double with 0 of 2 missing"),
        (["a", "b"], "str", "must be integers and none may be missing, got .*string with 0 of 2 missing"),
        ([0, None], "Int64", "got int64 with 1 of 2 missing"),
        ([-1, -1], "int64", "run from -1 to -1, expected 0 to"),
        ([], "int64", "cannot be read"),
    ],
)
def test_unusable_labels_are_named(tmp_path: Path, labels: list[Any], dtype: str, message: str) -> None:
    folder = _table(tmp_path / "set", x=[[[0.5]]] * len(labels), label=pandas.array(labels, dtype=dtype))
    with pytest.raises(ValueError, match=message):
        read_split(folder, "train", columns=Columns(image="x"))


def test_nan_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = {"x": [[[0.5]], [[float("nan")]]], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"set \(train\), row 1: holds NaN"):
        read_split(str(tmp_path / "set"), "train", columns=Columns(image="x"))


def test_pictures_of_different_sizes_need_a_size(tmp_path: Path, pixels: Pixels, write_parquet: Write) -> None:
    pictures = [*pixels[:3], pixels[3, :4]]
    write_parquet(tmp_path / "set" / "train.parquet", pictures, [0, 1, 0, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"row 3: .* is \(3, 4, 5\), but \(3, 6, 5\) in the first row; give size="):
        read_split(str(tmp_path / "set"), "train")
    assert read_split(str(tmp_path / "set"), "train", decoder=Decoder(size=(8, 7))).inputs.shape == (4, 3, 8, 7)


def test_unreadable_picture_is_named_by_its_row(tmp_path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    good = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    folder = _table(tmp_path / "set", image=[good, {"bytes": b"junk", "path": None}], label=[0, 1])
    with pytest.raises(ValueError, match=r"set \(train\), row 1: is not a readable picture"):
        read_split(folder, "train", columns=Columns(image="image"))


def test_locate_uses_the_last_name_under_a_root() -> None:
    assert locate("uoft-cs/cifar10", "/data") == "/data/cifar10"
    assert locate("uoft-cs/cifar10", None) == "uoft-cs/cifar10"
    with pytest.raises(FileNotFoundError, match="data/no-such-set is no folder"):
        read_split(locate("somebody/no-such-set", "data"), "train")
    assert locate("/mine/films", "/data") == "/mine/films", "what is said whole is meant"
