"""From what one cell of a table holds to a channels-first array."""

import io
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_MODES = {1: "L", 3: "RGB"}


class Cells(Protocol):
    """Makes every cell of a column an array, all of one shape; `kind` and `argument` name the column in messages."""

    kind: ClassVar[str]
    argument: ClassVar[str]

    def __call__(self, cell: Any) -> NDArray[Any]:
        """Decodes one cell."""


@final
@dataclass(frozen=True)
class Decoder:
    """Makes every cell an array `[C, H, W]`: uint8 from a picture or from integers, float32 from floats.

    A picture is `{"bytes": ..., "path": ...}`; anything else is taken for nested numbers, `[H, W]` or
    `[C, H, W]`. `size` (height, width) resizes pictures, `channels` (1 grayscale, 3 RGB) converts them; without
    them 8-bit L and RGB pictures are taken as they are.

    Raises:
        ValueError: if `size` or `channels` make no sense; on a call, if the cell cannot be read that way.

    >>> Decoder()([[0, 1], [2, 255]]).shape
    (1, 2, 2)
    """

    kind: ClassVar[str] = "picture"
    argument: ClassVar[str] = "image_column"

    size: tuple[int, ...] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, *_MODES):
            raise ValueError(f"channels must be 1 (grayscale), 3 (RGB) or None, got {self.channels}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size must be [height, width] in pixels, got {list(self.size)}")

    def __call__(self, cell: Any) -> NDArray[Any]:
        """Decodes one cell."""
        if cell is None:
            raise ValueError("is empty")
        if isinstance(cell, dict):
            return self._pixels(_open(cell))
        if self.size is not None or self.channels is not None:
            raise ValueError("holds numbers, but size= and channels= are for pictures only")
        return _numbers(cell)

    def _pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        mode = _MODES.get(self.channels or 0, picture.mode)
        if mode not in _MODES.values() or picture.mode.startswith(("I", "F")):
            raise ValueError(
                f"has mode {picture.mode}: 8-bit L and RGB are taken as they are, "
                "other 8-bit modes need channels=1 or 3"
            )
        picture = picture.convert(mode) if picture.mode != mode else picture
        if self.size is not None:
            picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(picture)
        return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _open(cell: dict[str, Any]) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
        picture.load()
        return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"is not a readable picture ({error})") from error


def _numbers(cell: Any) -> NDArray[Any]:
    try:
        array = np.asarray(cell)
    except ValueError:
        raise ValueError("is ragged: every row of an array must be as long as the others") from None
    if array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
        raise ValueError(f"is neither a picture nor a 2-D or 3-D array of numbers, but {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("holds NaN or infinite values")
    array = array[None] if array.ndim == 2 else array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"holds integers from {array.min()} to {array.max()}: pixels are 0..255, else store floats")
    return array.astype(np.uint8)
