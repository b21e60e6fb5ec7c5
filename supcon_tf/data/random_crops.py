"""Random crops for training: which box of an image a view shows, from uniform draws.

Two samplers exist because the published results come from two: the TensorFlow code of
Khosla et al. 2020 crops with `tf.image.sample_distorted_bounding_box`, their PyTorch code with
torchvision's `RandomResizedCrop`. At 32 pixels and areas of 0.2 to 1 the first covers on average
0.50 of the image, the second 0.55.
"""

from __future__ import annotations

import math

import tensorflow as tf

CROP_COMPATS = ("reference", "torchvision")
# https://github.com/google-research/google-research/blob/master/supcon/preprocessing.py
REFERENCE_ASPECT_RATIOS = (0.75, 1.33)
REFERENCE_MIN_AREA = 0.1  # min_object_covered, where the object is the whole image.
TORCHVISION_ASPECT_RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = {"reference": 100, "torchvision": 10}
USUAL_ATTEMPTS = 10  # Enough but for images of extreme shape, so the others are seldom computed.


def num_crop_draws(compat: str) -> int:
    """How many uniform numbers one crop needs: two for each attempt, then one for each side."""
    return 2 * ATTEMPTS[compat] + 2


def check_crops(area_range: tuple[float, float], compat: str) -> None:
    """Raises ValueError for an unknown sampler, or areas that it never crops."""
    if compat not in CROP_COMPATS:
        raise ValueError(
            f"Unknown crop_compat {compat!r}: choose one of {', '.join(CROP_COMPATS)}."
        )
    if compat == "reference" and area_range[1] <= REFERENCE_MIN_AREA:
        raise ValueError(
            f"The crop area range {area_range[0]:g} to {area_range[1]:g} cannot be drawn with "
            f"crop_compat='reference', whose crops cover more than {REFERENCE_MIN_AREA} of the "
            "image: raise the upper end, or use crop_compat='torchvision'."
        )


def random_crop_boxes(
    draws: tf.Tensor,
    heights: tf.Tensor,
    widths: tf.Tensor,
    *,
    area_range: tuple[float, float] = (0.08, 1.0),
    compat: str = "reference",
) -> tf.Tensor:
    """Random crops, distributed as the named sampler distributes them.

    Each attempt draws a shape; the first that fits the image and the area range is placed at
    random.

    Args:
        draws: float32 [B, num_crop_draws(compat)] in [0, 1).
        heights, widths: int32 [B], of each image, in pixels.
        area_range: share of the image's area, within (0, 1].
        compat: "reference": aspect ratios uniform in 0.75 to 1.33, then heights uniform among
            those in range, 100 attempts, none below a tenth of the image; the central square of
            the short side where no attempt succeeds. "torchvision": areas uniform, aspect ratios
            log-uniform in 3/4 to 4/3, 10 attempts; else the largest central crop whose aspect
            ratio is in range.

    Returns:
        int32 [B, 4]: top, left, height, width.
    """
    heights, widths = tf.cast(heights, tf.float32), tf.cast(widths, tf.float32)
    attempts = ATTEMPTS[compat]
    attempt = _reference_attempt if compat == "reference" else _torchvision_attempt
    fallback = _central_square if compat == "reference" else _central_in_range

    def first_fitting(count):
        height, width, fits = attempt(
            draws[:, :count],
            draws[:, attempts : attempts + count],
            heights[:, None],
            widths[:, None],
            area_range,
        )
        first = tf.argmax(tf.cast(fits, tf.int32), axis=1)
        height, width = (tf.gather(side, first, batch_dims=1) for side in (height, width))
        return height, width, tf.reduce_any(fits, axis=1)

    height, width, is_drawn = few = first_fitting(USUAL_ATTEMPTS)
    if attempts > USUAL_ATTEMPTS:
        height, width, is_drawn = tf.cond(
            tf.reduce_all(is_drawn), lambda: few, lambda: first_fitting(attempts)
        )
    if compat == "reference":  # The released code takes a crop of the whole image for a failure.
        is_drawn &= (height != heights) | (width != widths)
    # TensorFlow's sampler never reaches the last row and column unless it takes the whole side.
    room = 0.0 if compat == "reference" else 1.0
    top = tf.floor(draws[:, -2] * (heights - height + room))
    left = tf.floor(draws[:, -1] * (widths - width + room))
    drawn = tf.stack([top, left, height, width], axis=1)
    central = tf.stack(fallback(heights, widths), axis=1)
    return tf.cast(tf.where(is_drawn[:, None], drawn, central), tf.int32)


def _reference_attempt(ratio_draws, height_draws, image_height, image_width, area_range):
    """Heights, widths and whether they fit, [B, attempts], step by step as in
    https://github.com/tensorflow/tensorflow/blob/v2.18.0/tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc
    """
    low, high = REFERENCE_ASPECT_RATIOS
    ratio = low + ratio_draws * (high - low)
    image_area = image_height * image_width
    min_area, max_area = area_range[0] * image_area, area_range[1] * image_area

    tallest = tf.round(tf.sqrt(max_area / ratio))
    widest_fits = tf.floor((image_width + 0.5) / ratio)
    widest_fits -= tf.cast(tf.round(widest_fits * ratio) > image_width, tf.float32)
    tallest = tf.where(tf.round(tallest * ratio) > image_width, widest_fits, tallest)
    tallest = tf.minimum(tallest, image_height)
    shortest = tf.minimum(tf.round(tf.sqrt(min_area / ratio)), tallest)
    height = shortest + tf.floor(height_draws * (tallest - shortest + 1))

    # A height rounded to whole pixels may miss the area by one row.
    height += tf.cast(height * tf.round(height * ratio) < min_area, tf.float32)
    height -= tf.cast(height * tf.round(height * ratio) > max_area, tf.float32)
    width = tf.round(height * ratio)
    area = height * width
    fits = (area >= min_area) & (area <= max_area) & (height >= 1) & (width >= 1)
    fits &= (height <= image_height) & (width <= image_width)
    fits &= area / image_area >= REFERENCE_MIN_AREA
    return height, width, fits


def _torchvision_attempt(area_draws, ratio_draws, image_height, image_width, area_range):
    """https://github.com/pytorch/vision/blob/v0.20.0/torchvision/transforms/transforms.py"""
    area = image_height * image_width
    area *= area_range[0] + area_draws * (area_range[1] - area_range[0])
    low, high = (math.log(ratio) for ratio in TORCHVISION_ASPECT_RATIOS)
    ratio = tf.exp(low + ratio_draws * (high - low))
    height, width = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    fits = (height >= 1) & (width >= 1) & (height <= image_height) & (width <= image_width)
    return height, width, fits


def _central_square(heights, widths):
    side = tf.minimum(heights, widths)
    return (heights - side + 1) // 2, (widths - side + 1) // 2, side, side


def _central_in_range(heights, widths):
    low, high = TORCHVISION_ASPECT_RATIOS
    ratio = widths / heights
    height = tf.where(ratio < low, tf.round(widths / low), heights)
    width = tf.where(ratio > high, tf.round(heights * high), widths)
    return (heights - height) // 2, (widths - width) // 2, height, width
