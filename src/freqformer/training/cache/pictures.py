"""Pictures as clips of one frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.media import VideoError

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = ("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp")
"""File name endings of pictures."""
MOST_PIXELS = 2**26

Result = TypeVar("Result")


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as shown, after its EXIF orientation.

    Raises:
        VideoError: for a file that can't be read as a picture.
    """

    def look(picture: Image.Image) -> tuple[int, int]:
        turned = picture.getexif().get(_ORIENTATION, 1) in _TURNED
        return (picture.width, picture.height) if turned else (picture.height, picture.width)

    return _opened(path, look)


def read_picture(path: Path, *, height: int, width: int) -> Tensor:
    """uint8 (1, height, width, 3): turned as its EXIF orientation says, over black where it is
    transparent, resized to cover the size and cropped around the centre.

    Raises:
        VideoError: for a file that can't be read as a picture.
    """
    with needs("train"):
        from PIL import Image, ImageOps

    def shown(picture: Image.Image) -> Tensor:
        turned = ImageOps.exif_transpose(picture)
        clear = Image.new("RGBA", turned.size, (0, 0, 0, 255))
        clear.alpha_composite(turned.convert("RGBA"))
        fitted = ImageOps.fit(clear.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted))[None]

    return _opened(path, shown)


_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)


def _opened(path: Path, use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of the open picture; whatever goes wrong becomes a VideoError about it."""
    with needs("train"):
        from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise VideoError(
                    f"{path} has {picture.width} x {picture.height} pixels; up to {MOST_PIXELS}"
                    " are allowed: make it smaller, or remove it"
                )
            return use(picture)
    except VideoError:
        raise
    except Exception as error:  # damaged pictures make Pillow raise many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(
            f"{path} can't be read as a picture: {reason}; remove it, or make it again"
        ) from error
