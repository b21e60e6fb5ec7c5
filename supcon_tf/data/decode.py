"""Decodes image files, and finds files that are not images or cannot be decoded."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from supcon_tf.data import image_header, many_files, pillow_decode, reduced_decode
from supcon_tf.data.image_header import JPEG_START, PNG_START
from supcon_tf.data.one_call import in_one_call

OTHER_FORMATS = {b"II*\x00": "a TIFF", b"MM\x00*": "a TIFF", b"%PDF": "a PDF", b"PK": "a ZIP"}
# What the tools of this module decode, for messages.
FORMATS = "JPEG, PNG, WebP, BMP or GIF"
# libjpeg smooths between color samples, which needs one more pixel on each side of a crop.
CROP_MARGIN_PX = 1
# The header of a file of a few kilobytes can state any size, and decoding it would fill the memory.
# Photographs stay below this limit.
MAX_PIXELS = 50_000_000


def decode_image(
    encoded: tf.Tensor, *, max_pixels: int = MAX_PIXELS, any_format: bool = False
) -> tf.Tensor:
    """Decodes an image to uint8 [H, W, 3] and applies its EXIF orientation.

    Gray images get three equal channels, palettes and CMYK are converted to RGB, 16-bit values keep
    their upper 8 bits, an alpha channel is dropped, and of an animation the first frame is used.

    Args:
        encoded: JPEG or PNG bytes, string [].
        max_pixels: images whose header states more pixels are rejected before decoding.
        any_format: accept the formats of `pillow_decode` too. Pillow runs in this process, so a
            tf.data service cannot decode them.

    Raises:
        tf.errors.InvalidArgumentError: if the bytes are damaged or the image is too large.
    """

    if any_format:
        return tf.cond(
            image_header.is_jpeg(encoded) | image_header.is_png(encoded),
            lambda: decode_image(encoded, max_pixels=max_pixels),
            in_one_call(lambda: _decode_with_pillow(encoded, max_pixels)),
        )

    def from_plain_jpeg() -> tf.Tensor:
        with _few_pixels(tf.io.extract_jpeg_shape(encoded)[:2], max_pixels):
            return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    return tf.cond(
        image_header.is_plain_jpeg(encoded),
        from_plain_jpeg,
        in_one_call(lambda: _decode_any(encoded, max_pixels)),
    )


def decode_whole(encoded: tf.Tensor, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes one image of any supported format outside tf.data; as `decode_image`."""
    if pillow_decode.pillow_format(encoded.numpy()):
        return pillow_decode.decode_with_pillow(encoded.numpy(), max_pixels=max_pixels)
    return decode_image(encoded, max_pixels=max_pixels).numpy()


def decode_crops(
    encoded: tf.Tensor,
    boxes_of: Callable[[tf.Tensor], tf.Tensor],
    *,
    max_pixels: int = MAX_PIXELS,
    any_format: bool = False,
    least_size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the part of an image that its crops cover.

    Of a JPEG without an EXIF header, only the smallest box around all crops is decoded; other
    images are decoded whole. Without `least_size`, the pixels are the same either way. With it,
    JPEGs whose EXIF orientation is 1 are decoded in part too. Decoding each crop on its own was
    slower for two views, because every call unpacks all rows above the crop again.

    Args:
        encoded: JPEG or PNG bytes, string [].
        boxes_of: function from height and width after the EXIF orientation, int32 [2], to the
            crops, int32 [V, 4]: top, left, height, width.
        max_pixels, any_format: see `decode_image`.
        least_size: decode a JPEG at 1/2, 1/4 or 1/8 of its size if every crop keeps this many
            pixels in height and width, see `reduced_decode`. None decodes all pixels.

    Returns:
        The decoded part, uint8 [h, w, 3], and the crops within it, int32 [V, 4].
    """

    if any_format:

        def from_pillow() -> tuple[tf.Tensor, tf.Tensor]:
            image = _decode_with_pillow(encoded, max_pixels)
            return image, boxes_of(tf.shape(image)[:2])

        return tf.cond(
            image_header.is_jpeg(encoded) | image_header.is_png(encoded),
            lambda: decode_crops(encoded, boxes_of, max_pixels=max_pixels, least_size=least_size),
            in_one_call(from_pillow),
        )

    def from_plain_jpeg() -> tuple[tf.Tensor, tf.Tensor]:
        shape = tf.io.extract_jpeg_shape(encoded)[:2]
        boxes = boxes_of(shape)
        with _few_pixels(shape, max_pixels):
            return reduced_decode.decode_part(encoded, boxes, shape, margin=CROP_MARGIN_PX)

    def from_any() -> tuple[tf.Tensor, tf.Tensor]:
        image = _decode_any(encoded, max_pixels)
        return image, boxes_of(tf.shape(image)[:2])

    if least_size is None:
        return tf.cond(image_header.is_plain_jpeg(encoded), from_plain_jpeg, in_one_call(from_any))

    def from_jpeg_reduced() -> tuple[tf.Tensor, tf.Tensor]:
        with _few_pixels(tf.io.extract_jpeg_shape(encoded)[:2], max_pixels):
            return reduced_decode.decode_reduced_crops(
                tf.identity(encoded), boxes_of, least_size=least_size, margin=CROP_MARGIN_PX
            )

    return tf.cond(image_header.is_jpeg(encoded), from_jpeg_reduced, in_one_call(from_any))


def _decode_with_pillow(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Decodes an image by `pillow_decode`, also inside tf.data."""

    def decode(data: bytes) -> np.ndarray:
        return pillow_decode.decode_with_pillow(data, max_pixels=max_pixels)

    # Not stateful, so that tf.data still runs several at a time when it must be deterministic.
    image = tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, 3])


def _decode_any(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Decodes a whole JPEG or PNG and applies its EXIF orientation."""
    shape = tf.cond(
        image_header.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: _shape_of_other(encoded),
    )
    with _few_pixels(shape, max_pixels):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, [None, None, 3])
    return image_header.turn(image, image_header.orientation(encoded))


def _shape_of_other(encoded: tf.Tensor) -> tf.Tensor:
    """Height and width of a PNG; zeros for other formats, whose size is not checked."""
    return tf.cond(
        image_header.is_png(encoded),
        lambda: image_header.png_shape(encoded),
        lambda: tf.zeros([2], tf.int32),
    )


def _few_pixels(shape, max_pixels):
    """A context in which operations run only if an image of this shape is not too large."""
    height, width = tf.unstack(tf.ensure_shape(tf.cast(shape, tf.int64), [2]))
    is_small = (height >= 0) & (width >= 0) & (height * width <= max_pixels)
    # The raw operation, because tf.debugging.Assert wraps it in a condition.
    check = tf.raw_ops.Assert(condition=is_small, data=["the image is too large:", height, width])
    return tf.control_dependencies([] if check is None else [check])


def inspect_files(
    paths: Sequence[str], *, max_pixels: int = MAX_PIXELS
) -> tuple[dict[str, str], set[str]]:
    """Looks at the first bytes of every file.

    Returns:
        The files that are not images, as path to reason; and those in a format that only Pillow
        decodes.
    """
    look = functools.partial(_look_at_start, max_pixels=max_pixels)
    found = list(zip(paths, many_files.for_each(look, paths), strict=True))
    reasons = {path: reason for path, (reason, _) in found if reason}
    return reasons, {path for path, (_, is_for_pillow) in found if is_for_pillow}


def decoded_files(paths: Sequence[str], *, max_pixels: int = MAX_PIXELS) -> tf.data.Dataset:
    """Decodes files of any supported format, several at a time.

    It uses tf.data instead of Python threads. TensorFlow sometimes crashes if several Python
    threads run their first eager operations at the same time.

    Args:
        paths: one or more files, whose names are valid UTF-8.
        max_pixels: see `decode_image`.

    Returns:
        A dataset of (index of the path, uint8 [H, W, 3]) in the order of the paths. It raises the
        errors of `decode_image`; `ignore_errors()` leaves such files out.
    """

    @tf.autograph.experimental.do_not_convert
    def decode(index, path):
        encoded = tf.io.read_file(path)
        return index, decode_image(encoded, max_pixels=max_pixels, any_format=True)

    num_files = min(many_files.NUM_FILES, len(paths))
    options = tf.data.Options()
    # By default there are as many threads as cores, which wait for remote storage together.
    options.threading.private_threadpool_size = num_files
    files = tf.data.Dataset.from_tensor_slices((np.arange(len(paths)), list(paths)))
    return files.map(decode, num_parallel_calls=num_files).with_options(options)


def find_undecodable(paths: Sequence[str], *, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """Finds files that cannot be decoded, by decoding every file.

    Returns:
        Path to reason.
    """
    found = zip(paths, many_files.for_each(_reason_by_kind, paths), strict=True)
    reasons = {path: reason for path, reason in found if reason}
    suspects = [path for path in paths if path not in reasons]
    if len(suspects) > 1:  # For one file a graph is not worth its time.
        decoded = decoded_files(suspects, max_pixels=max_pixels).ignore_errors()
        good = {index for index, _ in decoded.as_numpy_iterator()}
        suspects = [path for index, path in enumerate(suspects) if index not in good]
    for path in suspects:
        if reason := _reason_by_decoding(path, max_pixels=max_pixels):
            reasons[path] = reason
    return {path: reasons[path] for path in paths if path in reasons}


def _look_at_start(path: str, *, max_pixels: int) -> tuple[str | None, bool]:
    """Why a file is not an image, if so; and whether Pillow has to decode it."""
    reason = _reason_by_kind(path)
    if reason:
        return reason, False
    try:
        # Python's own files are opened much faster.
        is_remote = "://" in path
        with tf.io.gfile.GFile(path, "rb") if is_remote else open(path, "rb", buffering=0) as file:
            start = file.read(pillow_decode.START_BYTES)
    except (tf.errors.OpError, OSError) as error:
        return f"cannot be read: {getattr(error, 'message', error)}", False
    if not start:
        return "empty", False
    if start.startswith(PNG_START):
        width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
        return _reason_by_size(height, width, max_pixels), False
    if start.startswith(JPEG_START):
        return None, False
    if pillow_decode.pillow_format(start):
        return _reason_by_size(*pillow_decode.stated_size(start), max_pixels), True
    known = [name for first, name in OTHER_FORMATS.items() if start.startswith(first)]
    return f"starts with {start[:8]!r}" + "".join(f", {name} file" for name in known), False


def _reason_by_kind(path: str) -> str | None:
    """Why a path is not a regular file, if so. Opening a pipe would wait for its writer forever."""
    if "://" in path:
        return "a folder among images" if tf.io.gfile.isdir(path) else None
    if any("\udc80" <= character <= "\udcff" for character in path):
        return "its name is not valid UTF-8: rename it"
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "a folder among images"
    return None if stat.S_ISREG(mode) else "not a regular file but a pipe, socket or device"


def _reason_by_decoding(path: str, *, max_pixels: int) -> str | None:
    reason = None
    try:
        encoded = tf.io.read_file(path)
        if image_header.is_jpeg(encoded):
            height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy()
            reason = _reason_by_size(int(height), int(width), max_pixels)
        elif pillow_decode.pillow_format(encoded.numpy()):
            reason = _reason_by_size(*pillow_decode.stated_size(encoded.numpy()), max_pixels)
        if not reason:
            decode_whole(encoded, max_pixels=max_pixels)
    except tf.errors.NotFoundError:
        return "no longer exists"
    except (tf.errors.OpError, UnicodeDecodeError, ValueError):
        return "cannot be decoded"
    return reason


def _reason_by_size(height: int, width: int, max_pixels: int) -> str | None:
    if height * width <= max_pixels:
        return None
    return f"{width:,} x {height:,} pixels, more than the limit of {max_pixels / 1e6:g} megapixels"
