"""Reads the size and the EXIF orientation from the header of a JPEG or PNG.

Cameras store pixels as the sensor saw them, and note in the EXIF header how to turn the image. All
functions are TensorFlow operations on the encoded bytes, so that they can run inside tf.data.
EXIF 2.3: https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, tag 0x0112.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
ORIENTATION_TAG = 0x0112
# The part of a file that is searched for the EXIF header, which comes before the pixels.
_HEADER_BYTES = 2**18
_TIFF_BYTES = 2**12
_PADDING = 32  # Zeros after the bytes, so that a truncated header has no orientation.


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes start like a JPEG. Returns bool []."""
    return tf.strings.substr(encoded, 0, len(JPEG_START)) == JPEG_START


def is_png(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes start like a PNG. Returns bool []."""
    return tf.strings.substr(encoded, 0, len(PNG_START)) == PNG_START


def is_plain_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes are a JPEG without an EXIF header, as two markers show. Returns bool [].

    In such a JPEG, the quantization tables directly follow its start or its JFIF header. An EXIF
    header would come before the tables.
    """
    start = _start(encoded)
    first, second = tf.strings.substr(start, 0, 4), tf.strings.substr(start, 20, 2)
    has_jfif = first == JPEG_START + b"\xe0"
    return (first == JPEG_START + b"\xdb") | (has_jfif & (second == b"\xff\xdb"))


def png_shape(encoded: tf.Tensor) -> tf.Tensor:
    """The stored height and width of a PNG, int32 [2]."""
    width_height = tf.io.decode_raw(tf.strings.substr(_start(encoded), 16, 8), tf.int32, False)
    return tf.reverse(width_height, [0])


def _start(encoded):
    """The first bytes, padded with zeros.

    Without padding, `tf.strings.substr` of a short file raises an error whose message contains the
    bytes of the file, which are not valid text.
    """
    return tf.strings.join([tf.strings.substr(encoded, 0, _PADDING), bytes(_PADDING)])


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of an image, int32 [], from 1 to 8. 1 if it is missing or invalid.

    The function has no conditions or loops, because inside tf.data every operation of a branch
    that is not taken still costs a microsecond.
    """
    header = tf.strings.substr(encoded, 0, _HEADER_BYTES)
    mark = tf.where(is_png(encoded), b"eXIf", b"Exif\x00\x00")
    # Without the mark, the second part is empty.
    parts = tf.raw_ops.StringSplitV2(input=[header], sep=mark, maxsplit=1).values
    return _tiff_orientation(tf.concat([parts, [b"", b""]], axis=0)[1])


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image [H, W, C] as its orientation says, into [H, W, C] or [W, H, C]."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    dims = tf.concat([flipped_axes(orientation), [False]], axis=0)
    return tf.raw_ops.Reverse(tensor=image, dims=dims)


def flipped_axes(orientation: tf.Tensor) -> tf.Tensor:
    """Whether `turn` reverses the rows and the columns of the turned image, bool [2]."""
    flips_rows = tf.reduce_any(orientation == [3, 4, 7, 8])
    return tf.stack([flips_rows, tf.reduce_any(orientation == [2, 3, 6, 7])])


def _tiff_orientation(tiff):
    """The orientation in the first directory of a TIFF header, int32 []."""
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(tiff, 0, _TIFF_BYTES), tf.uint8), tf.int64)
    end = tf.size(data, tf.int64)
    data = tf.pad(data, [[0, _PADDING]])
    is_little = data[0] == ord("I")
    directory = tf.minimum(_number(data, 4, 4, is_little), end)
    count = _number(data, directory, 2, is_little)
    entries = data[directory + 2 : tf.minimum(directory + 2 + 12 * count, end)]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    value = _numbers(entries[:, 8:10], is_little)
    is_tag = _numbers(entries[:, 0:2], is_little) == ORIENTATION_TAG
    found = tf.concat([tf.boolean_mask(value, is_tag), [1]], axis=0)[0]
    return tf.cast(tf.where((found >= 1) & (found <= 8), found, 1), tf.int32)


def _number(data, place, size, is_little=False):
    return _numbers(tf.ensure_shape(data[place : place + size], [size]), is_little)


def _numbers(digits, is_little):
    """Unsigned integers from their bytes, int64 [..., size]."""
    size = digits.shape[-1]
    # Constants of NumPy: TensorFlow's graph optimizer logs an error for a slice of negative stride.
    little = np.array([256**power for power in range(size)], np.int64)
    weights = tf.where(is_little, little, little[::-1].copy())
    return tf.reduce_sum(digits * weights, axis=-1)
