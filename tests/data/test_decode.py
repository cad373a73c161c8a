import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_compress.data.decode import Decoder


def _cell(picture: Image.Image, **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", **options)
    return {"bytes": buffer.getvalue(), "path": None}


RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_pictures_come_out_as_they_went_in() -> None:
    assert np.array_equal(Decoder()(_cell(Image.fromarray(RGB))), RGB.transpose(2, 0, 1))
    assert np.array_equal(Decoder()(_cell(Image.fromarray(RGB[..., 0]))), RGB[None, ..., 0])


def test_picture_from_a_file(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert np.array_equal(Decoder()({"bytes": None, "path": str(tmp_path / "a.png")}), RGB.transpose(2, 0, 1))


def test_channels_converts_both_ways() -> None:
    gray = Decoder(channels=1)(_cell(Image.fromarray(RGB)))
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert gray.shape == (1, 4, 6)
    assert np.abs(gray[0] - luma).max() <= 1
    alpha = Image.fromarray(np.dstack([RGB, np.full((4, 6), 128, np.uint8)]))
    assert np.array_equal(Decoder(channels=3)(_cell(alpha)), RGB.transpose(2, 0, 1))


def test_size_is_height_then_width() -> None:
    assert Decoder(size=(2, 3))(_cell(Image.fromarray(RGB))).shape == (3, 2, 3)


def test_halving_a_flat_picture_keeps_it_flat() -> None:
    flat = np.full((8, 8, 3), 77, np.uint8)
    assert (Decoder(size=(4, 4))(_cell(Image.fromarray(flat))) == 77).all()


def test_orientation_of_the_camera_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    turned = Decoder()(_cell(Image.fromarray(RGB), exif=exif))
    assert np.array_equal(turned, np.rot90(RGB, -1).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("cell", "dtype", "shape"),
    [
        ([[0, 255], [1, 2], [3, 4]], np.uint8, (1, 3, 2)),
        ([[[0.5, 1.0]], [[2.0, 3.0]]], np.float32, (2, 1, 2)),
        ([[0.0, 255.0]], np.float32, (1, 1, 2)),
    ],
)
def test_numbers_keep_their_kind(cell: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    array = Decoder()(cell)
    assert array.dtype == dtype
    assert array.shape == shape
    assert np.array_equal(array.reshape(np.shape(cell)), np.array(cell))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "is empty"),
        ({"bytes": b"junk", "path": None}, "not a readable picture"),
        ({"bytes": None, "path": "nowhere.png"}, "not a readable picture"),
        (_cell(Image.fromarray(np.zeros((2, 2), np.uint16))), r"has mode I;16.*need channels=1 or 3"),
        (_cell(Image.fromarray(np.dstack([RGB, RGB[..., :1]]))), r"has mode RGBA.*need channels=1 or 3"),
        ([[0.0, float("nan")]], "NaN or infinite"),
        ([[0.0, float("inf")]], "NaN or infinite"),
        ([[0, 256]], "integers from 0 to 256"),
        ([[1, 2], [3]], "ragged"),
        ([1, 2], "neither a picture nor a 2-D or 3-D array"),
        ("seven", "neither a picture"),
    ],
)
def test_unreadable_cells_say_why(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder()(cell)


def test_truncated_picture_is_refused() -> None:
    cell = _cell(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)))
    with pytest.raises(ValueError, match="not a readable picture"):
        Decoder()({"bytes": cell["bytes"][:1000], "path": None})


def test_16_bit_is_refused_even_with_channels() -> None:
    with pytest.raises(ValueError, match="has mode I;16"):
        Decoder(channels=1)(_cell(Image.fromarray(np.zeros((2, 2), np.uint16))))


def test_options_for_pictures_are_refused_for_numbers() -> None:
    with pytest.raises(ValueError, match="for pictures only"):
        Decoder(size=(2, 2))([[0, 1]])


def test_impossible_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"1 .grayscale., 3 .RGB. or None, got 4"):
        Decoder(channels=4)
    with pytest.raises(ValueError, match=r"\[height, width\] in pixels, got \[32\]"):
        Decoder(size=(32,))
