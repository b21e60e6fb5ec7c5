"""Image formats that Pillow decodes, because TensorFlow does not read them, or not all variants."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "WEBP")
# The possible sizes of the header after a BMP's first 14 bytes. Two letters alone prove little.
BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
# How many first bytes `pillow_format` and `stated_size` need.
START_BYTES = 30


def pillow_format(start: bytes) -> str | None:
    """The format that the first bytes of a file belong to, if Pillow is to decode it."""
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith(b"BM") and int.from_bytes(start[14:18], "little") in BMP_HEADER_SIZES:
        return "BMP"
    return None


def stated_size(start: bytes) -> tuple[int, int]:
    """Height and width as stored in the first bytes of a file that `pillow_format` recognizes.

    GIF: https://www.w3.org/Graphics/GIF/spec-gif89a.txt, section 18. WebP:
    https://developers.google.com/speed/webp/docs/riff_container. Too short a file gives zeros.
    """

    def number(first: int, size: int) -> int:
        return int.from_bytes(start[first : first + size], "little")

    if start.startswith(b"GIF"):
        return number(8, 2), number(6, 2)
    if start.startswith(b"BM"):
        size = 2 if number(14, 4) == 12 else 4
        width, height = (number(18 + place * size, size) for place in (0, 1))
        return min(height, 256**size - height), width  # A negative height: rows from the top.
    if start[12:16] == b"VP8X":
        return number(27, 3) + 1, number(24, 3) + 1
    if start[12:16] == b"VP8L":
        bits = number(21, 4)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return number(28, 2) & 0x3FFF, number(26, 2) & 0x3FFF


def decode_with_pillow(encoded: bytes, *, max_pixels: int) -> np.ndarray:
    """Decodes the first frame to uint8 [H, W, 3], as a viewer shows it.

    Palettes and gray are converted to RGB, an EXIF orientation is applied, and an alpha channel is
    dropped.

    Raises:
        ValueError: if the bytes are damaged, or if the header states more pixels than max_pixels.
    """
    image = _open_image(encoded)
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(f"the image is too large: {height} {width}")
    try:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # Pillow raises many types for damaged files.
        raise ValueError(f"the image cannot be decoded: {error}") from error


def _open_image(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Exception as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
