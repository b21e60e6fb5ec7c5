"""Images in the page: each as a data URI, or many as one sprite sheet."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from supcon_tf.report.markup import Html, escaped, tag

# Larger images are scaled down to this many pixels on the longer side.
THUMBNAIL_PX = 96
SPRITE_PX = 48


def thumbnail(image: np.ndarray | None, alt: Any, caption: Any = None) -> Html:
    """Returns an image with its caption.

    Args:
        image: uint8 [H, W, 3]; None shows an empty frame.
        alt: What a screen reader says.
        caption: Below the image.
    """
    below = tag("figcaption", caption) if caption is not None else None
    if image is None:
        return tag("figure", tag("p", "The image cannot be read."), below, class_="tile")
    content = tag("img", src=_data_uri(image), alt=escaped(alt))
    return tag("figure", content, below, class_="tile")


def tiles(items: list[Html]) -> Html:
    """Returns images beside each other."""
    return tag("div", items, class_="tiles")


def _data_uri(image):
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    # PNG keeps the pixels of small images; JPEG is smaller for photographs.
    if max(picture.size) <= 32:
        picture.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(file, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def sprite_sheet(images: np.ndarray, quality: int = 75) -> tuple[str, int, int]:
    """Returns all images in one JPEG: its data URI, the side of a tile in pixels, tiles per row.

    Args:
        images: uint8 [M, S, S, 3].
        quality: Of the JPEG.
    """
    from PIL import Image

    side = min(SPRITE_PX, max(16, images.shape[1] // 16 * 16))  # JPEG works on blocks of 16.
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for index, image in enumerate(images):
        small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        sheet.paste(small, (index % columns * side, index // columns * side))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=quality)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return uri, side, columns
