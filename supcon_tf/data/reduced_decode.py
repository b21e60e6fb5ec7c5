"""Decodes JPEG files at a half, a quarter or an eighth of their size, for crops that are shrunk.

A JPEG stores blocks of 8 x 8 pixels as cosine coefficients. Of these, a decoder can compute 4 x 4,
2 x 2 or 1 x 1 pixels directly, which takes less time than computing all of them: the parameter
`scale_num/scale_denom` of https://libjpeg-turbo.org.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from supcon_tf.data import image_header
from supcon_tf.data.one_call import in_one_call

RATIOS = (1, 2, 4, 8)


def decode_reduced_crops(
    encoded: tf.Tensor,
    boxes_of: Callable[[tf.Tensor], tf.Tensor],
    *,
    least_size: int,
    margin: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the part of a JPEG that its crops cover, as small as the crops allow.

    Args:
        encoded: JPEG bytes, string [], with or without an EXIF orientation.
        boxes_of: function from height and width after the orientation, int32 [2], to the crops,
            int32 [V, 4]: top, left, height, width.
        least_size: every crop keeps at least about this many pixels in height and width.
        margin: pixels to decode around the crops.

    Returns:
        The decoded part, uint8 [h, w, 3], and the crops within it, int32 [V, 4]. Their borders are
        rounded to whole pixels of the reduced image.

    Raises:
        tf.errors.InvalidArgumentError: if the bytes are damaged.
    """
    orientation = tf.cond(
        image_header.is_plain_jpeg(encoded),
        lambda: tf.constant(1),
        in_one_call(lambda: image_header.orientation(encoded)),
    )
    stored = tf.io.extract_jpeg_shape(encoded)[:2]
    shape = tf.where(orientation >= 5, tf.reverse(stored, [0]), stored)
    boxes = boxes_of(shape)

    # Pixels that do not fill a reduced pixel are at the end of a stored axis, so at the start of a
    # flipped one.
    is_flipped = image_header.flipped_axes(orientation)

    def decode(ratio: int) -> tuple[tf.Tensor, tf.Tensor]:
        offset = tf.where(is_flipped, shape % ratio, 0)
        small = reduced_boxes(boxes, shape, ratio, offset)
        height, width = tf.unstack(tf.maximum(stored // ratio, 1))
        decodable = (stored + ratio - 1) // ratio

        def part() -> tuple[tf.Tensor, tf.Tensor]:
            return decode_part(encoded, small, decodable, margin=margin, ratio=ratio)

        def whole() -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.io.decode_jpeg(encoded, channels=3, ratio=ratio)[:height, :width]
            return image_header.turn(image, orientation), small

        return tf.cond(orientation == 1, part, in_one_call(whole))

    sides = tf.reduce_min(boxes[:, 2:])
    fitting = tf.reduce_sum(tf.cast(sides >= least_size * tf.constant(RATIOS), tf.int32))
    branches = [in_one_call(functools.partial(decode, ratio)) for ratio in RATIOS]
    return tf.switch_case(tf.maximum(fitting - 1, 0), branches)


def reduced_boxes(
    boxes: tf.Tensor, shape: tf.Tensor, ratio: int, offset: tf.Tensor | int = 0
) -> tf.Tensor:
    """The crops of an image, within the image of 1/ratio of its size.

    The last rows and columns of the whole image that do not fill a reduced pixel are left out.

    Args:
        boxes: int32 [V, 4]: top, left, height, width.
        shape: height and width of the whole image, int32 [2].
        ratio: one of RATIOS.
        offset: rows and columns, int32 [2], that are left out at the start instead of the end.

    Returns:
        int32 [V, 4], at least one pixel high and wide. Every border is rounded to a whole pixel.
    """
    if ratio == 1:
        return boxes
    start = boxes[:, :2] - offset
    start, end = ((x + ratio // 2) // ratio for x in (start, start + boxes[:, 2:]))
    end = tf.clip_by_value(end, 1, tf.maximum(shape // ratio, 1))
    start = tf.clip_by_value(start, 0, end - 1)
    return tf.concat([start, end - start], axis=1)


def decode_part(
    encoded: tf.Tensor, boxes: tf.Tensor, shape: tf.Tensor, *, margin: int, ratio: int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes the smallest box around the crops of a JPEG, with a margin.

    Args:
        encoded: JPEG bytes, string [], whose orientation is 1.
        boxes: int32 [V, 4] in the decoded image: top, left, height, width.
        shape: height and width of the decoded image, int32 [2].
        margin: pixels of the decoded image on every side, where it has them.
        ratio: one of RATIOS.

    Returns:
        The decoded part, uint8 [h, w, 3], and the crops within it, int32 [V, 4].
    """
    start = tf.maximum(tf.reduce_min(boxes[:, :2], axis=0) - margin, 0)
    end = tf.reduce_max(boxes[:, :2] + boxes[:, 2:], axis=0) + margin
    window = tf.concat([start, tf.minimum(end, shape) - start], axis=0)
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, ratio=ratio)
    return image, boxes - tf.pad(start, [[0, 2]])
