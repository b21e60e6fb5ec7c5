"""From the bytes of an image file to pixels, and what to say about files that are no images."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import stat
from collections.abc import Callable, Sequence

import tensorflow as tf

from supcon_tf.data import image_header
from supcon_tf.data.image_header import JPEG_START, PNG_START

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

    def from_plain_jpeg():
        with _few_pixels(tf.io.extract_jpeg_shape(encoded)[:2], max_pixels):
            return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    return tf.cond(
        image_header.is_plain_jpeg(encoded),
        from_plain_jpeg,
        _in_one_call(lambda: _decode_any(encoded, max_pixels)),
    )


def decode_crops(
    encoded: tf.Tensor,
    boxes_of: Callable[[tf.Tensor], tf.Tensor],
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes what the crops of one image cover: of a JPEG only the smallest box around them.

    The pixels are those of the whole image, turned as its EXIF orientation says; a JPEG with an
    EXIF header is decoded whole. Decoding each crop by itself was measured slower for two views:
    every call unpacks all rows above the crop again.

    Args:
        encoded: JPEG or PNG bytes.
        boxes_of: height and width of the turned image, int32 [2] -> crops in it, int32 [V, 4]:
            top, left, height, width.
        max_pixels: see `decode_image`.

    Returns:
        uint8 [h, w, 3], and the crops within it, int32 [V, 4].
    """

    def from_plain_jpeg():
        shape = tf.io.extract_jpeg_shape(encoded)[:2]
        boxes = boxes_of(shape)
        start = tf.maximum(tf.reduce_min(boxes[:, :2], axis=0) - CROP_MARGIN_PX, 0)
        end = tf.reduce_max(boxes[:, :2] + boxes[:, 2:], axis=0) + CROP_MARGIN_PX
        window = tf.concat([start, tf.minimum(end, shape) - start], axis=0)
        with _few_pixels(shape, max_pixels):
            image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
        return image, boxes - tf.pad(start, [[0, 2]])

    def from_any():
        image = _decode_any(encoded, max_pixels)
        return image, boxes_of(tf.shape(image)[:2])

    return tf.cond(image_header.is_plain_jpeg(encoded), from_plain_jpeg, _in_one_call(from_any))


def _in_one_call(branch):
    """The branch of a condition as one operation of the graph.

    tf.data visits every operation of the branch that is not taken, about a microsecond each. A
    function that is not inlined counts as one.
    """
    if tf.executing_eagerly():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def _decode_any(encoded, max_pixels):
    """A JPEG or PNG, turned as its EXIF header says."""
    shape = tf.cond(
        image_header.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: _shape_of_other(encoded),
    )
    with _few_pixels(shape, max_pixels):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, 3])
    return image_header.turn(image, image_header.orientation(encoded))


def _shape_of_other(encoded):
    """Height and width of a PNG; zeros of other formats, whose size is not checked."""
    return tf.cond(
        image_header.is_png(encoded),
        lambda: image_header.png_shape(encoded),
        lambda: tf.zeros([2], tf.int32),
    )


def _few_pixels(shape, max_pixels):
    """Within it, operations run only if an image of this shape is not too large."""
    height, width = tf.unstack(tf.ensure_shape(tf.cast(shape, tf.int64), [2]))
    is_small = (height >= 0) & (width >= 0) & (height * width <= max_pixels)
    # Not tf.debugging.Assert, which adds a condition around it.
    check = tf.raw_ops.Assert(condition=is_small, data=["the image is too large:", height, width])
    return tf.control_dependencies([] if check is None else [check])


def find_other_files(paths: Sequence[str], *, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """Path to reason for those that are not JPEG or PNG, by the first bytes of every file.

    Many at a time, because gs:// answers slowly.
    """
    return _find(paths, functools.partial(_reason_by_first_bytes, max_pixels=max_pixels))


def find_undecodable(paths: Sequence[str], *, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """Path to reason for those that cannot be decoded; reads and decodes every one."""
    return _find(paths, functools.partial(_reason_by_decoding, max_pixels=max_pixels))


def _find(paths, reason_of):
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        reasons = list(pool.map(reason_of, paths, chunksize=64))
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _reason_by_first_bytes(path, *, max_pixels):
    reason = _reason_by_kind(path)
    if reason:
        return reason
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            start = file.read(24)
    except (tf.errors.OpError, OSError) as error:
        return f"cannot be read: {getattr(error, 'message', error)}"
    if not start:
        return "empty"
    if start.startswith(PNG_START):
        width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
        return _reason_by_size(height, width, max_pixels)
    if start.startswith(JPEG_START):
        return None
    known = [name for first, name in OTHER_FORMATS.items() if start.startswith(first)]
    return f"starts with {start[:8]!r}" + "".join(f", {name} image" for name in known)


def _reason_by_kind(path):
    """Why a path cannot be a file of pixels; to open a pipe would wait for its writer for ever."""
    if "://" in path:
        return "a folder among images" if tf.io.gfile.isdir(path) else None
    if any("\udc80" <= character <= "\udcff" for character in path):
        return "its name is not valid UTF-8: rename it"
    if os.path.isdir(path):
        return "a folder among images"
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if stat.S_ISREG(mode) else "no regular file but a pipe, socket or device"


def _reason_by_decoding(path, *, max_pixels):
    reason = _reason_by_kind(path)
    if reason:
        return reason
    try:
        encoded = tf.io.read_file(path)
        if image_header.is_jpeg(encoded):
            height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy()
            reason = _reason_by_size(int(height), int(width), max_pixels)
        if not reason:
            decode_image(encoded, max_pixels=max_pixels)
    except tf.errors.NotFoundError:
        return "does not exist any more"
    except (tf.errors.OpError, UnicodeDecodeError):
        return "cannot be decoded"
    return reason


def _reason_by_size(height, width, max_pixels):
    if height * width <= max_pixels:
        return None
    return f"{width:,} x {height:,} pixels, more than the limit of {max_pixels / 1e6:g} megapixels"
