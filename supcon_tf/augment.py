"""Image operations: uint8 [B, S, S, 3] in and out, over whole batches, without any random state.

What is random comes in as `draws`, uniform numbers in [0, 1) that the pipeline makes from
(seed, step, row, view); each function here is a pure function of the images and its arguments.
"""

from __future__ import annotations

import tensorflow as tf

CROP_ATTEMPTS = 10
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2
JITTER_DRAWS = 8
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # as tf.image.rgb_to_grayscale


def random_crop_boxes(
    draws: tf.Tensor,
    heights: tf.Tensor,
    widths: tf.Tensor,
    *,
    area_range: tuple[float, float] = (0.08, 1.0),
    aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
) -> tf.Tensor:
    """Random crops as `tf.image.sample_distorted_bounding_box` distributes them.

    Each attempt draws an aspect ratio (width / height), then a height among those whose area
    is in range; the first attempt that fits the image counts. If none fits, the crop is the
    central square of the short side.

    Args:
        draws: float32 [B, CROP_DRAWS] in [0, 1).
        heights, widths: int32 [B], of each image, in pixels.
        area_range: share of the image's area, within (0, 1].
        aspect_ratio_range: width over height.

    Returns:
        int32 [B, 4]: top, left, height, width.
    """
    heights, widths = tf.cast(heights, tf.float32), tf.cast(widths, tf.float32)
    area = (heights * widths)[:, None]
    low, high = aspect_ratio_range
    ratio = low + draws[:, :CROP_ATTEMPTS] * (high - low)  # [B, attempts]

    shortest = tf.round(tf.sqrt(area_range[0] * area / ratio))
    tallest = tf.round(tf.sqrt(area_range[1] * area / ratio))
    tallest = tf.minimum(tallest, tf.floor((widths[:, None] + 0.5 - 1e-4) / ratio))
    tallest = tf.minimum(tallest, heights[:, None])
    shortest = tf.minimum(shortest, tallest)
    choice = draws[:, CROP_ATTEMPTS : 2 * CROP_ATTEMPTS]
    height = shortest + tf.floor(choice * (tallest - shortest + 1))
    width = tf.round(height * ratio)
    fits = (height >= 1) & (width >= 1) & (width <= widths[:, None])
    # Rounding to whole pixels may miss the area by one row or column, and no more.
    fits &= (height + 1) * (width + 1) >= area_range[0] * area

    first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
    any_fits = tf.reduce_any(fits, axis=1)
    side = tf.minimum(heights, widths)
    height = tf.where(any_fits, tf.gather(height, first, batch_dims=1), side)
    width = tf.where(any_fits, tf.gather(width, first, batch_dims=1), side)
    top_draw, left_draw = draws[:, -2], draws[:, -1]
    top = tf.where(any_fits, tf.floor(top_draw * (heights - height + 1)), (heights - side) // 2)
    left = tf.where(any_fits, tf.floor(left_draw * (widths - width + 1)), (widths - side) // 2)
    return tf.cast(tf.stack([top, left, height, width], axis=1), tf.int32)


def crop_and_resize(images: tf.Tensor, boxes: tf.Tensor, size: int) -> tf.Tensor:
    """Crops each image to its box and resizes bilinearly, as slicing and `tf.image.resize` do.

    Args:
        images: uint8 [B, H, W, 3].
        boxes: int32 [B, 4]: top, left, height, width.
        size: S, the side of the result in pixels.

    Returns:
        uint8 [B, S, S, 3], rounded to the nearest level.
    """
    top, left, height, width = tf.unstack(boxes, axis=1)
    above, below, down = _bilinear_taps(top, height, size)
    before, after, right = _bilinear_taps(left, width, size)
    down, right = down[:, :, None, None], right[:, None, :, None]
    upper = tf.cast(tf.gather(images, above, axis=1, batch_dims=1), tf.float32)  # [B, S, W, 3]
    lower = tf.cast(tf.gather(images, below, axis=1, batch_dims=1), tf.float32)
    rows = upper + (lower - upper) * down
    start = tf.gather(rows, before, axis=2, batch_dims=1)  # [B, S, S, 3]
    end = tf.gather(rows, after, axis=2, batch_dims=1)
    return to_uint8(start + (end - start) * right)


def _bilinear_taps(start, length, size):
    """Two source indices [B, S] and the weight of the second [B, S], half-pixel centres."""
    scale = tf.cast(length, tf.float32)[:, None] / size
    position = (tf.range(size, dtype=tf.float32) + 0.5)[None, :] * scale - 0.5
    first = tf.floor(position)
    last_index = length[:, None] - 1
    lower = tf.clip_by_value(tf.cast(first, tf.int32), 0, last_index)
    upper = tf.clip_by_value(tf.cast(first, tf.int32) + 1, 0, last_index)
    return lower + start[:, None], upper + start[:, None], position - first


def flip(images: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Mirrors the chosen images left to right. chosen: bool [B]."""
    return tf.where(chosen[:, None, None, None], tf.reverse(images, axis=[2]), images)


def grayscale(images: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    """Replaces the chosen images by their luma in all three channels. chosen: bool [B]."""
    gray = to_uint8(_luma(tf.cast(images, tf.float32)))
    return tf.where(chosen[:, None, None, None], tf.broadcast_to(gray, tf.shape(images)), images)


def color_jitter(images: tf.Tensor, draws: tf.Tensor, strength: float) -> tf.Tensor:
    """SimCLR's colour jitter: brightness, contrast, saturation and hue in a random order.

    Brightness, contrast and saturation factors are uniform in 1 +- 0.8 strength (not below
    0), the hue turns by up to 0.2 strength of the circle; values are clipped after each
    (Chen et al. 2020, https://arxiv.org/abs/2002.05709, appendix A).

    Args:
        images: uint8 [B, S, S, 3].
        draws: float32 [B, JITTER_DRAWS] in [0, 1): four amounts, then four that order the ops.
        strength: 1.0 for ImageNet, 0.5 for CIFAR-10.
    """
    spread = 0.8 * strength
    low = max(0.0, 1.0 - spread)
    factors = low + draws[:, :3] * (1.0 + spread - low)
    turns = (draws[:, 3] * 2.0 - 1.0) * 0.2 * strength
    order = tf.argsort(draws[:, 4:8], axis=1)  # [B, 4]
    values = tf.cast(images, tf.float32)
    for slot in range(4):
        turn = order[:, slot][:, None, None, None]
        amounts = [factors[:, k][:, None, None, None] for k in range(3)]
        values = tf.where(turn == 0, values * amounts[0], values)
        mean = tf.reduce_mean(_luma(values), axis=[1, 2], keepdims=True)
        values = tf.where(turn == 1, mean + (values - mean) * amounts[1], values)
        gray = _luma(values)
        values = tf.where(turn == 2, gray + (values - gray) * amounts[2], values)
        values = tf.where(turn == 3, _turn_hue(values, turns), values)
        values = tf.clip_by_value(values, 0.0, 255.0)
    return to_uint8(values)


def to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Rounds to the nearest level within 0..255."""
    return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)


def _luma(values):
    return tf.reduce_sum(values * tf.constant(GRAY_WEIGHTS), axis=-1, keepdims=True)


def _turn_hue(values, turns):
    hsv = tf.image.rgb_to_hsv(values / 255.0)
    hue = tf.math.floormod(hsv[..., :1] + turns[:, None, None, None], 1.0)
    return tf.image.hsv_to_rgb(tf.concat([hue, hsv[..., 1:]], axis=-1)) * 255.0
