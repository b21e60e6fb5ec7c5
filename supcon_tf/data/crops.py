"""Crops for evaluation: from an image of any shape to a square, without randomness."""

from __future__ import annotations

import tensorflow as tf

EVAL_CROP_METHODS = (
    "auto",
    "resize_then_crop",
    "crop_then_resize",
    "crop_then_distort",
    "identity",
)


def check_eval_crop(method: str, padding: int) -> None:
    """Raises ValueError for an unknown method or a negative padding."""
    if method not in EVAL_CROP_METHODS:
        raise ValueError(
            f"Unknown eval_crop_method {method!r}: choose one of {', '.join(EVAL_CROP_METHODS)}."
        )
    if padding < 0:
        raise ValueError(f"crop_padding is a number of pixels from 0, got {padding}.")


def eval_crop(image: tf.Tensor, size: int, *, method: str = "auto", padding: int = 32) -> tf.Tensor:
    """The part of an image that is evaluated, bilinearly resized.

    Args:
        image: uint8 [H, W, 3].
        size: S.
        method: "auto": images of S pixels stay as they are, larger ones lose the border that a
            random crop would seldom show, 1/8 of the short side (see `central_box`). The others
            as the released code (https://github.com/google-research/google-research/tree/master/supcon,
            preprocessing.py): "resize_then_crop": the short side becomes S + padding, then the
            central square of S. "crop_then_resize": the central square of
            S / (S + padding) of the short side. "crop_then_distort": the same share of each
            side, squeezed to a square. "identity": the image, which must have S pixels. "auto"
            rounds to the nearest level; the others drop the fraction, as the released code does.
        padding: see above; 32 for 224 pixels in the recipes. "auto" and "identity" do not look.

    Returns:
        uint8 [S, S, 3].

    Raises:
        tf.errors.InvalidArgumentError: "identity" meets another size.
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
        # The borders are equal, as those of `tf.image.central_crop`.
        top, left = (tf.cast(tf.cast(x, tf.float32) * (1 - share) / 2, tf.int32)
                     for x in (height, width))  # fmt: skip
        box = tf.stack([top, left, height - 2 * top, width - 2 * left])
    else:
        box = central_box(height, width, size)
    compat = "pillow" if method == "auto" else "reference"
    return crop_and_resize(image, box, size, compat=compat)


def central_box(height: tf.Tensor, width: tf.Tensor, image_size: int) -> tf.Tensor:
    """The central square that "auto" resizes to S: int32 [4] top, left, height, width."""
    short = tf.minimum(height, width)
    side = tf.where(short > image_size, tf.maximum(short * 7 // 8, image_size), short)
    return _central(height, width, side, side)


def crop_and_resize(
    image: tf.Tensor, box: tf.Tensor, size: int, *, compat: str = "pillow"
) -> tf.Tensor:
    """uint8 [H, W, 3] -> [S, S, 3], as `color.crop_and_resize` within one level.

    For a single image of any shape TensorFlow's kernel is three times as fast.

    Args:
        image: uint8 [H, W, 3].
        box: int32 [4]: top, left, height, width.
        size: S.
        compat: "pillow" rounds to the nearest level, "reference" drops the fraction.
    """
    top, left, height, width = tf.unstack(box)
    image = image[top : top + height, left : left + width]
    resized = tf.image.resize(image, [size, size])
    # A weighted mean of levels stays between 0 and 255: nothing to clip.
    rounding = 0.0 if compat == "reference" else 0.5
    return tf.ensure_shape(tf.cast(resized + rounding, tf.uint8), [size, size, 3])


def flip_if(is_flipped: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """Mirrors one image [S, S, 3] left to right, or not.

    A condition around TensorFlow's kernel for single images: choosing with `tf.where` took as
    long as decoding.
    """
    return tf.cond(is_flipped, lambda: tf.reverse(image, axis=[1]), lambda: image)


def _central(height, width, crop_height, crop_width):
    top, left = (height - crop_height + 1) // 2, (width - crop_width + 1) // 2
    return tf.stack([top, left, crop_height, crop_width])
