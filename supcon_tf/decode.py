"""From the bytes of an image file to pixels, and what to say about files that are no images."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence

import tensorflow as tf

from supcon_tf import image_header
from supcon_tf.image_header import JPEG_START, PNG_START

OTHER_FORMATS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP",
    b"II*\x00": "a TIFF",
    b"MM\x00*": "a TIFF",
}
# What libjpeg smooths between colour samples needs one pixel more on each side of a crop.
CROP_MARGIN_PX = 1
# A file of a few kilobytes can claim any size and fill the memory; photographs stay below this.
MAX_PIXELS = 50_000_000


def decode_image(encoded: tf.Tensor, *, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """JPEG or PNG bytes -> uint8 [H, W, 3], turned as its EXIF orientation says.

    Grey is repeated, CMYK converted, of 16 bits the upper 8 kept, an alpha channel dropped.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are damaged, or the header names more pixels
            than max_pixels; then nothing is decoded.
    """
    shape = tf.cond(
        image_header.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: _shape_of_other(encoded),
    )
    with _few_pixels(shape, max_pixels):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return image_header.turn(image, image_header.orientation(encoded))


def decode_crops(
    encoded: tf.Tensor,
    boxes_of: Callable[[tf.Tensor], tf.Tensor],
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes what the crops of one image cover: of a JPEG only the smallest box around them.

    The pixels are those of the whole image, turned as its EXIF orientation says. Decoding each
    crop by itself was measured slower for two views: every call unpacks all rows above the crop
    again.

    Args:
        encoded: JPEG or PNG bytes.
        boxes_of: height and width of the turned image, int32 [2] -> crops in it, int32 [V, 4]:
            top, left, height, width.
        max_pixels: see `decode_image`.

    Returns:
        uint8 [h, w, 3], and the crops within it, int32 [V, 4].
    """

    def from_jpeg():
        orientation = image_header.orientation(encoded)
        stored = tf.io.extract_jpeg_shape(encoded)[:2]
        shape = image_header.turned_shape(stored, orientation)
        boxes = boxes_of(shape)
        start = tf.maximum(tf.reduce_min(boxes[:, :2], axis=0) - CROP_MARGIN_PX, 0)
        end = tf.reduce_max(boxes[:, :2] + boxes[:, 2:], axis=0) + CROP_MARGIN_PX
        window = tf.concat([start, tf.minimum(end, shape) - start], axis=0)
        window = tf.cond(
            orientation == 1,
            lambda: window,
            lambda: image_header.stored_window(window, shape, orientation),
        )
        with _few_pixels(stored, max_pixels):
            image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        return image_header.turn(image, orientation), boxes - tf.pad(start, [[0, 2]])

    def from_png():
        image = decode_image(encoded, max_pixels=max_pixels)
        image = tf.ensure_shape(image, [None, None, 3])
        return image, boxes_of(tf.shape(image)[:2])

    return tf.cond(image_header.is_jpeg(encoded), from_jpeg, from_png)


def _shape_of_other(encoded):
    """Height and width of a PNG; zeros of other formats, whose size is not checked."""
    return tf.cond(
        image_header.is_png(encoded),
        lambda: image_header.png_shape(encoded),
        lambda: tf.zeros([2], tf.int32),
    )


def _few_pixels(shape, max_pixels):
    """Within it, operations run only if an image of this shape is not too large."""
    height, width = tf.unstack(tf.cast(shape, tf.int64))
    is_small = (height >= 0) & (width >= 0) & (height * width <= max_pixels)
    problem = tf.debugging.Assert(is_small, ["the image is too large:", height, width])
    return tf.control_dependencies([] if problem is None else [problem])


def find_other_files(paths: Sequence[str]) -> dict[str, str]:
    """Path to reason for those that are not JPEG or PNG, by the first bytes of every file.

    Many at a time, because gs:// answers slowly.
    """
    return _find(paths, _reason_by_first_bytes)


def find_undecodable(paths: Sequence[str]) -> list[str]:
    """Those of the files that cannot be decoded whole; reads and decodes every one."""
    return list(_find(paths, _reason_by_decoding))


def _find(paths, reason_of):
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        reasons = list(pool.map(reason_of, paths, chunksize=64))
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _reason_by_first_bytes(path):
    if tf.io.gfile.isdir(path):
        return "a folder among images"
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            start = file.read(8)
    except tf.errors.OpError as error:
        return f"cannot be read: {error.message}"
    if not start:
        return "empty"
    if start.startswith((JPEG_START, PNG_START)):
        return None
    known = [name for first, name in OTHER_FORMATS.items() if start.startswith(first)]
    return f"starts with {start!r}" + "".join(f", {name} image" for name in known)


def _reason_by_decoding(path):
    try:
        decode_image(tf.io.read_file(path))
    except tf.errors.OpError:
        return "cannot be decoded"
    return None
