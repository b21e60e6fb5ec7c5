"""Crops for training and for evaluation: which box of an image is used, and how it is resized.

There are two samplers of random crops because the published results come from two: the TensorFlow
code of Khosla et al. 2020 crops with `tf.image.sample_distorted_bounding_box`, their PyTorch code
with torchvision's `RandomResizedCrop`. At 32 pixels and areas of 0.2 to 1, the first covers on
average 0.50 of the image, the second 0.55.
"""

from __future__ import annotations

import math

import tensorflow as tf

from supcon_tf.augment.rounding import to_uint8

CROP_COMPATS = ("reference", "torchvision")
# https://github.com/google-research/google-research/blob/master/supcon/preprocessing.py
REFERENCE_ASPECT_RATIOS = (0.75, 1.33)
REFERENCE_MIN_AREA = 0.1  # min_object_covered, with the whole image as the object.
TORCHVISION_ASPECT_RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = {"reference": 100, "torchvision": 10}
# Enough unless an image has an extreme shape, so the other attempts are seldom computed.
USUAL_ATTEMPTS = 10
EVAL_CROP_METHODS = (
    "auto",
    "resize_then_crop",
    "crop_then_resize",
    "crop_then_distort",
    "identity",
)


# Random crops for training.


def num_crop_draws(compat: str) -> int:
    """How many uniform numbers a crop needs: two per attempt, and two for its position."""
    return 2 * ATTEMPTS[compat] + 2


def check_random_crop(area_range: tuple[float, float], compat: str) -> None:
    """Raises ValueError for an unknown sampler or for areas that it cannot draw."""
    if compat not in CROP_COMPATS:
        raise ValueError(
            f"Unknown crop_compat {compat!r}: choose one of {', '.join(CROP_COMPATS)}."
        )
    if compat == "reference" and area_range[1] <= REFERENCE_MIN_AREA:
        raise ValueError(
            f"The crop area range {area_range[0]:g} to {area_range[1]:g} cannot be drawn with "
            f"crop_compat='reference', whose crops cover more than {REFERENCE_MIN_AREA} of the "
            "image: raise the upper end of crop_area_range, or use crop_compat='torchvision'."
        )


def random_crop_boxes(
    draws: tf.Tensor,
    heights: tf.Tensor,
    widths: tf.Tensor,
    *,
    area_range: tuple[float, float] = (0.08, 1.0),
    compat: str = "reference",
) -> tf.Tensor:
    """Draws random crops with the distribution of the chosen sampler.

    Each attempt draws a shape. The first shape that fits the image and the area range is placed at
    a random position.

    Args:
        draws: float32 [B, num_crop_draws(compat)] in [0, 1).
        heights, widths: int32 [B], of each image, in pixels.
        area_range: share of the area of the image, within (0, 1].
        compat: "reference" draws aspect ratios uniformly from 0.75 to 1.33, then heights uniformly
            from those in range, in 100 attempts, and never covers less than a tenth of the image.
            If no attempt succeeds, it takes the central square of the short side. "torchvision"
            draws areas uniformly and aspect ratios log-uniformly from 3/4 to 4/3, in 10 attempts.
            If none succeeds, it takes the largest central crop whose aspect ratio is in range.

    Returns:
        int32 [B, 4]: top, left, height, width.
    """
    heights, widths = tf.cast(heights, tf.float32), tf.cast(widths, tf.float32)
    attempts = ATTEMPTS[compat]
    attempt = _reference_attempt if compat == "reference" else _torchvision_attempt
    fallback = _central_square if compat == "reference" else _central_in_range

    def first_fitting(count: int) -> tuple[tf.Tensor, ...]:
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
    if compat == "reference":  # The released code treats a crop of the whole image as a failure.
        is_drawn &= (height != heights) | (width != widths)
    # TensorFlow's sampler never reaches the last row or column unless it covers the whole side.
    room = 0.0 if compat == "reference" else 1.0
    top = tf.floor(draws[:, -2] * (heights - height + room))
    left = tf.floor(draws[:, -1] * (widths - width + room))
    drawn = tf.stack([top, left, height, width], axis=1)
    central = tf.stack(fallback(heights, widths), axis=1)
    return tf.cast(tf.where(is_drawn[:, None], drawn, central), tf.int32)


def _reference_attempt(ratio_draws, height_draws, image_height, image_width, area_range):
    """Heights, widths and whether they fit, each [B, attempts]. Step by step as in
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

    # A height rounded to whole pixels can miss the area range by one row.
    height += tf.cast(height * tf.round(height * ratio) < min_area, tf.float32)
    height -= tf.cast(height * tf.round(height * ratio) > max_area, tf.float32)
    width = tf.round(height * ratio)
    area = height * width
    fits = (area >= min_area) & (area <= max_area) & (height >= 1) & (width >= 1)
    fits &= (height <= image_height) & (width <= image_width)
    fits &= area / image_area >= REFERENCE_MIN_AREA
    return height, width, fits


def _torchvision_attempt(area_draws, ratio_draws, image_height, image_width, area_range):
    """Heights, widths and whether they fit, each [B, attempts]. As in
    https://github.com/pytorch/vision/blob/v0.20.0/torchvision/transforms/transforms.py
    """
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


# Central crops.


def central_train_crop(image: tf.Tensor, size: int, *, compat: str) -> tf.Tensor:
    """The view of training with the crop area range (1, 1), which is not random.

    With `crop_compat="torchvision"` that view is still random, because it may lack a row or a
    column.

    Args:
        image: uint8 [H, W, 3].
        size: S.
        compat: see `crop_and_resize`.

    Returns:
        uint8 [S, S, 3], the central square.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    top, left, *sides = _central_square(height, width)
    return crop_and_resize(image, tf.stack([top, left, *sides]), size, compat=compat)


def check_eval_crop(method: str, padding: int) -> None:
    """Raises ValueError for an unknown method or a negative padding."""
    if method not in EVAL_CROP_METHODS:
        raise ValueError(
            f"Unknown eval_crop_method {method!r}: choose one of {', '.join(EVAL_CROP_METHODS)}."
        )
    if padding < 0:
        raise ValueError(f"crop_padding must be at least 0 pixels, got {padding}.")


def eval_crop(image: tf.Tensor, size: int, *, method: str = "auto", padding: int = 32) -> tf.Tensor:
    """Crops an image for evaluation and resizes the crop bilinearly.

    "auto" rounds to the nearest level. The other methods drop the fraction, as the released code
    does (https://github.com/google-research/google-research/tree/master/supcon, preprocessing.py):

    * "auto" keeps images of S pixels. Larger images lose 1/8 of the short side, a border that a
      random crop would seldom show (see `central_box`).
    * "resize_then_crop" resizes the short side to S + padding and takes the central square of S.
    * "crop_then_resize" takes the central square of S / (S + padding) of the short side.
    * "crop_then_distort" takes the same share of each side and resizes it to a square.
    * "identity" requires images of S pixels and does not change them.

    Args:
        image: uint8 [H, W, 3].
        size: S.
        method: one of EVAL_CROP_METHODS.
        padding: see above. The recipes use 32 for 224 pixels. Ignored by "auto" and "identity".

    Returns:
        uint8 [S, S, 3].

    Raises:
        tf.errors.InvalidArgumentError: if the method is "identity" and the image has another size.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    share = size / (size + padding)
    if method == "identity":
        message = f"eval_crop_method=identity needs images of {size}x{size} pixels, got one of"
        is_right = (height == size) & (width == size)
        with tf.control_dependencies([tf.debugging.Assert(is_right, [message, height, width])]):
            return tf.ensure_shape(tf.identity(image), [size, size, 3])
    if method == "resize_then_crop":
        short = tf.cast(tf.minimum(height, width), tf.float32)
        sides = tf.cast(tf.stack([height, width]), tf.float32)
        sides = tf.cast((size + padding) / short * sides, tf.int32)
        resized = tf.image.resize(image, tf.maximum(sides, size))
        image, box = tf.cast(resized, tf.uint8), _central(sides[0], sides[1], size, size)
    elif method == "crop_then_resize":
        short = tf.minimum(height, width)
        side = tf.maximum(tf.cast(share * tf.cast(short, tf.float32), tf.int32), 1)
        box = _central(height, width, side, side)
    elif method == "crop_then_distort":
        # Opposite borders are equal, as in `tf.image.central_crop`.
        top, left = (tf.cast(tf.cast(x, tf.float32) * (1 - share) / 2, tf.int32)
                     for x in (height, width))  # fmt: skip
        box = tf.stack([top, left, height - 2 * top, width - 2 * left])
    else:
        box = central_box(height, width, size)
    compat = "pillow" if method == "auto" else "reference"
    return crop_and_resize(image, box, size, compat=compat)


def central_box(height: tf.Tensor, width: tf.Tensor, image_size: int) -> tf.Tensor:
    """The central square that "auto" resizes to S, as int32 [4]: top, left, height, width."""
    short = tf.minimum(height, width)
    side = tf.where(short > image_size, tf.maximum(short * 7 // 8, image_size), short)
    return _central(height, width, side, side)


def _central(height, width, crop_height, crop_width):
    top, left = (height - crop_height + 1) // 2, (width - crop_width + 1) // 2
    return tf.stack([top, left, crop_height, crop_width])


# Resizing.


def crop_and_resize(image: tf.Tensor, box: tf.Tensor, size: int, *, compat: str) -> tf.Tensor:
    """Crops one image of any shape and resizes the crop with TensorFlow's kernel.

    Args:
        image: uint8 [H, W, 3].
        box: int32 [4]: top, left, height, width.
        size: S.
        compat: "pillow" rounds to the nearest level. "reference" drops the fraction, as the
            released code does, which darkens images by half a level on average.

    Returns:
        uint8 [S, S, 3].
    """
    top, left, height, width = tf.unstack(box)
    image = image[top : top + height, left : left + width]
    resized = tf.image.resize(image, [size, size])
    # A weighted mean of levels stays between 0 and 255, so clipping is not needed.
    rounding = 0.0 if compat == "reference" else 0.5
    return tf.ensure_shape(tf.cast(resized + rounding, tf.uint8), [size, size, 3])


def flip_if(is_flipped: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Mirrors one image [S, S, 3] left to right if `is_flipped`.

    This is a condition around TensorFlow's kernel, because `tf.where` took as long as decoding.
    """
    return tf.cond(is_flipped, lambda: tf.reverse(image, axis=[1]), lambda: image)


def bilinear_taps(start: tf.Tensor, length: tf.Tensor, size: int) -> tuple[tf.Tensor, ...]:
    """The source pixels of a bilinear resize of [start, start + length) to `size` pixels.

    Args:
        start, length: int32 [B].
        size: S. Pixel centers are at half pixels.

    Returns:
        Two source indices, int32 [B, S], and the weight of the second, float32 [B, S].
    """
    scale = tf.cast(length, tf.float32)[:, None] / size
    position = (tf.range(size, dtype=tf.float32) + 0.5)[None, :] * scale - 0.5
    first = tf.floor(position)
    last_index = length[:, None] - 1
    lower = tf.clip_by_value(tf.cast(first, tf.int32), 0, last_index)
    upper = tf.clip_by_value(tf.cast(first, tf.int32) + 1, 0, last_index)
    return lower + start[:, None], upper + start[:, None], position - first


def resample(images: tf.Tensor, down: tuple, right: tuple, *, compat: str) -> tf.Tensor:
    """Resizes images inside compiled code, where `tf.image.resize` of a box cannot be compiled.

    Args:
        images: uint8 [B, H, W, 3].
        down, right: the `bilinear_taps` of rows and of columns.
        compat: see `crop_and_resize`.

    Returns:
        uint8 [B, S, S, 3], within one level of `crop_and_resize`.
    """
    above, below, down_weight = down
    before, after, right_weight = right
    down_weight, right_weight = down_weight[:, :, None, None], right_weight[:, None, :, None]
    upper = tf.cast(tf.gather(images, above, axis=1, batch_dims=1), tf.float32)  # [B, S, W, 3]
    lower = tf.cast(tf.gather(images, below, axis=1, batch_dims=1), tf.float32)
    rows = upper + (lower - upper) * down_weight
    start = tf.gather(rows, before, axis=2, batch_dims=1)  # [B, S, S, 3]
    end = tf.gather(rows, after, axis=2, batch_dims=1)
    values = start + (end - start) * right_weight
    return to_uint8(tf.floor(values) if compat == "reference" else values)
