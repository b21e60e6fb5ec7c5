"""What the first bytes of a JPEG or PNG say: its size, and how a viewer turns it.

Cameras store the pixels as the sensor saw them and note in the EXIF header how to turn them. All
functions are TensorFlow operations on the encoded bytes, so that they run inside tf.data.
EXIF 2.3: https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, tag 0x0112.
"""

from __future__ import annotations

import tensorflow as tf

JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
ORIENTATION_TAG, SHORT_TYPE = 0x0112, 3
# Where the EXIF header is searched: it comes before the pixels.
_HEADER_BYTES = 2**18
_PADDING = 32  # Zeros after the bytes, so that a truncated header reads as one without EXIF.


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes start as a JPEG: bool []."""
    return tf.strings.substr(encoded, 0, len(JPEG_START)) == JPEG_START


def is_png(encoded: tf.Tensor) -> tf.Tensor:
    """Whether the bytes start as a PNG: bool []."""
    return tf.strings.substr(encoded, 0, len(PNG_START)) == PNG_START


def png_shape(encoded: tf.Tensor) -> tf.Tensor:
    """Height and width of a PNG, as stored: int32 [2]."""
    width_height = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, False)
    return width_height[::-1]


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of an image, 1 to 8: int32 []. 1 where there is none or a bad one.

    An image without EXIF is recognized by two markers, without reading on.
    """

    def of_jpeg():
        first, second = (tf.strings.substr(encoded, place, 2) for place in (2, 20))
        # The quantization tables follow the start, or the 16 bytes of the JFIF header.
        is_plain = (first == b"\xff\xdb") | ((first == b"\xff\xe0") & (second == b"\xff\xdb"))
        return tf.cond(is_plain, lambda: tf.constant(1), lambda: _search(encoded, _find_in_jpeg))

    def of_png():
        is_plain = tf.strings.substr(encoded, 37, 4) == b"IDAT"  # Directly after IHDR.
        return tf.cond(is_plain, lambda: tf.constant(1), lambda: _search(encoded, _find_in_png))

    def of_other():
        return tf.cond(is_png(encoded), of_png, lambda: tf.constant(1))

    return tf.cond(is_jpeg(encoded), of_jpeg, of_other)


def turns(orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether to swap rows and columns, then to flip rows, then to flip columns: bool [] each."""
    swaps = orientation >= 5
    flips_rows = tf.reduce_any(orientation == [3, 4, 7, 8])
    flips_columns = tf.reduce_any(orientation == [2, 3, 6, 7])
    return swaps, flips_rows, flips_columns


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The image [H, W, C] as a viewer shows it: [H, W, C] or [W, H, C]."""

    def turned():
        swaps, flips_rows, flips_columns = turns(orientation)
        result = tf.cond(swaps, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        result = tf.cond(flips_rows, lambda: tf.reverse(result, [0]), lambda: result)
        return tf.cond(flips_columns, lambda: tf.reverse(result, [1]), lambda: result)

    return tf.cond(orientation == 1, lambda: image, turned)


def turned_shape(shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Height and width after `turn`: int32 [2]."""
    return tf.where(turns(orientation)[0], shape[::-1], shape)


def stored_window(window: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Where the pixels of a window of the turned image are stored.

    Args:
        window: int32 [4] in the turned image: top, left, height, width.
        shape: int32 [2], height and width of the turned image.

    Returns:
        int32 [4], the window that `turn` turns into the given one.
    """
    swaps, flips_rows, flips_columns = turns(orientation)
    start, sides = window[:2], window[2:]
    flips = tf.stack([flips_rows, flips_columns])
    start = tf.where(flips, shape - start - sides, start)
    return tf.concat(
        [tf.where(swaps, start[::-1], start), tf.where(swaps, sides[::-1], sides)], axis=0
    )


def _search(encoded, find):
    """The orientation in the TIFF header whose place `find` gives, or 1."""
    header = tf.strings.substr(encoded, 0, _HEADER_BYTES)
    data = tf.cast(tf.io.decode_raw(header, tf.uint8), tf.int64)
    end = tf.size(data, tf.int64)
    data = tf.pad(data, [[0, _PADDING]])
    place = find(data, end)
    return tf.cond(place > 0, lambda: _tiff_orientation(data, place, end), lambda: tf.constant(1))


def _find_in_jpeg(data, end):
    """The place of the TIFF header, after the marker and `Exif`; 0 if there is none."""

    def is_exif(place):
        return (data[place + 1] == 0xE1) & _is_text(data, place + 4, b"Exif\x00\x00")

    def goes_on(place):
        marker = data[place + 1]
        is_skipped = ((marker >= 0xE0) & (marker <= 0xEF)) | (marker == 0xFE)  # APPn, comment
        return (place + 4 <= end) & (data[place] == 0xFF) & is_skipped & ~is_exif(place)

    def following(place):
        return (tf.minimum(place + 2 + _number(data, place + 2, 2), end),)

    (place,) = tf.while_loop(goes_on, following, (tf.constant(2, tf.int64),))
    return tf.where(is_exif(place), place + 10, 0)


def _find_in_png(data, end):
    """The place of the eXIf chunk's data if it comes before the pixels, else 0."""

    def goes_on(place):
        is_last = _is_text(data, place + 4, b"IDAT") | _is_text(data, place + 4, b"eXIf")
        return (place + 12 <= end) & ~is_last

    def following(place):
        return (tf.minimum(place + 12 + _number(data, place, 4), end),)

    (place,) = tf.while_loop(goes_on, following, (tf.constant(8, tf.int64),))
    return tf.where(_is_text(data, place + 4, b"eXIf"), place + 8, 0)


def _tiff_orientation(data, place, end):
    """The orientation among the entries of the first directory of a TIFF header: int32 []."""
    is_little = data[place] == ord("I")
    directory = tf.minimum(place + _number(data, place + 4, 4, is_little), end)
    count = _number(data, directory, 2, is_little)
    entries = data[directory + 2 : tf.minimum(directory + 2 + 12 * count, end)]
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    tag = _numbers(entries[:, 0:2], is_little)
    is_short = _numbers(entries[:, 2:4], is_little) == SHORT_TYPE
    value = tf.where(
        is_short, _numbers(entries[:, 8:10], is_little), _numbers(entries[:, 8:12], is_little)
    )
    found = tf.concat([tf.boolean_mask(value, tag == ORIENTATION_TAG), [1]], axis=0)[0]
    return tf.cast(tf.where((found >= 1) & (found <= 8), found, 1), tf.int32)


def _is_text(data, place, text):
    return tf.reduce_all(data[place : place + len(text)] == list(text))


def _number(data, place, size, is_little=False):
    return _numbers(tf.ensure_shape(data[place : place + size], [size]), is_little)


def _numbers(digits, is_little):
    """Unsigned numbers from their bytes int64 [..., size]."""
    size = digits.shape[-1]
    weights = tf.constant([256**power for power in range(4)], tf.int64)[:size]
    return tf.reduce_sum(digits * tf.where(is_little, weights, weights[::-1]), axis=-1)
