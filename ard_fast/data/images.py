"""Image files to uint8 arrays, with Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# Pillow goes by content, not by name, and knows formats that start other programs (EPS): these and no others.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
_MAX_PIXELS = 1 << 26  # 200 MB once decoded; a few kB can claim billions
MAX_SIZE = 4096  # of what images may be scaled to
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


def decode(path: Path, size: int | None) -> np.ndarray:
    """An image as uint8 `[3, H, W]` in RGB, turned as its EXIF orientation says; of an animation the first frame,
    transparency dropped.

    Args:
        path: the file.
        size: the shorter side is scaled to this (bilinear, antialiased) and the middle `size` x `size` pixels are
            taken; None leaves the image as it is.

    Raises:
        ValueError: not an image of 8 bits a channel, too large, or damaged.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {_MAX_PIXELS} in all")
            if image.mode not in _MODES:
                raise ValueError(f"pixels of Pillow's mode {image.mode}, expected 8 bits a channel")
            pixels = _upright(image).convert("RGB")
    except Exception as error:  # a damaged image fails with almost any exception type
        reason = "cannot identify it as an image" if "cannot identify" in str(error) else str(error)
        raise ValueError(f"{path}: {reason}") from error
    if size is not None:
        # Scaling just the square in the middle: what a whole one-pixel-high image would scale to may not fit anywhere.
        width, height = pixels.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """Cameras store what the sensor saw, and beside it how to turn it; viewers and annotation tools do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, on almost any exception type; damaged pixels are seen when they are converted
        return image
