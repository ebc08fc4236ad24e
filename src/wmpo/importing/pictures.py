"""Images in tables, as others encode them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from wmpo.data.recorded import damaged


def picture(content: bytes, size: tuple[int, int], path: Path, row: int) -> np.ndarray:
    """An encoded image as (H, W, 3) uint8; it must be of this size."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as found:
            image: Image.Image = found
            if image.mode[0] in "IF":
                raise damaged(path, f"has an image of more than 8 bits a colour in row {row}")
            if image.height * image.width == size[0] * size[1]:  # else not decoded: small files may be huge pictures
                image = ImageOps.exif_transpose(image)
            if (image.height, image.width) != size:
                what = f"shows {image.height}x{image.width} pixels in row {row} in place of {size[0]}x{size[1]}"
                raise damaged(path, what)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise damaged(path, f"has a damaged image in row {row}") from None
