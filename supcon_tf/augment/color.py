"""Operations on levels and colors: uint8 [B, S, S, 3] in and out, without any random state.

Each function is a pure function of the images and of arguments, of which there is one per image.
The operations equal Pillow's pixel by pixel. Where `compat="reference"` is offered, it equals the
library behind the released SupCon code instead (tensorflow/models, 2021,
https://github.com/tensorflow/models/blob/v2.5.0/official/vision/image_classification/augment.py).
Both compute in float32 with a rounding after every step, see `rounding.rounded_product`.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from supcon_tf.augment.rounding import rounded_product

COMPATS = ("pillow", "reference")
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # As in tf.image.rgb_to_grayscale.


# Operations on levels, as in `PIL.ImageOps`.


def invert(images: tf.Tensor) -> tf.Tensor:
    """255 - x."""
    return 255 - images


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest `bits` of every level. bits: int32 [B] in 0..8."""
    mask = 256 - tf.bitwise.left_shift(1, 8 - bits)
    return images & tf.cast(mask, tf.uint8)[:, None, None, None]


def solarize(images: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
    """Inverts levels at or above the threshold. thresholds: int32 [B] in 0..256."""
    below = tf.cast(images, tf.int32) < thresholds[:, None, None, None]
    return tf.where(below, images, 255 - images)


def solarize_add(images: tf.Tensor, additions: tf.Tensor) -> tf.Tensor:
    """Adds to levels below 128. additions: int32 [B] in 0..128."""
    levels = tf.cast(images, tf.int32)
    added = tf.minimum(levels + additions[:, None, None, None], 255)
    return tf.where(levels < 128, tf.cast(added, tf.uint8), images)


def autocontrast(images: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Stretches each channel linearly so that its levels span 0..255."""
    low = tf.cast(tf.reduce_min(images, axis=[1, 2]), tf.int32)  # [B, 3]
    high = tf.cast(tf.reduce_max(images, axis=[1, 2]), tf.int32)
    levels = tf.range(256)
    stretch = _stretch_as_reference if compat == "reference" else _stretch_as_pillow
    tables = stretch(levels, low[..., None], high[..., None])  # [B, 3, 256]
    tables = tf.where((high > low)[..., None], tf.clip_by_value(tables, 0, 255), levels)
    return look_up(images, tf.cast(tables, tf.uint8))


def _stretch_as_pillow(levels: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """int(level * scale - low * scale) with scale = 255 / (high - low), in float64.

    Because of rounding, a result that should be a whole number can be one lower. To get Pillow's
    bits with and without a fused multiply-add, the scale is split into two parts: each product
    with a byte is exact, so that only their sum is rounded, like the one product in Pillow.
    """
    scale = 255.0 / np.maximum(np.arange(256), 1)
    coarse = np.floor(scale * 2.0**16) / 2.0**16
    coarse, fine = (tf.gather(tf.constant(part), high - low) for part in (coarse, scale - coarse))

    def scaled(value: tf.Tensor) -> tf.Tensor:
        value = tf.cast(value, tf.float64)
        return value * coarse + value * fine

    return tf.cast(scaled(levels) - scaled(low), tf.int32)


def _stretch_as_reference(levels: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """int(level * scale - low * scale) with scale = 255 / (high - low), in float32."""
    scale = 255.0 / tf.cast(tf.maximum(high - low, 1), tf.float32)
    return tf.cast(rounded_product(levels, scale) - rounded_product(low, scale), tf.int32)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Equalizes the histogram of each channel."""
    counts = channel_histograms(images)  # [B, 3, 256]
    pixels = images.shape[1] * images.shape[2]
    last = tf.cast(tf.reduce_max(images, axis=[1, 2]), tf.int32)[..., None]
    step = (pixels - tf.gather(counts, last, batch_dims=2)) // 255  # [B, 3, 1]
    below = tf.cumsum(counts, axis=-1, exclusive=True)
    tables = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    tables = tf.where(step > 0, tables, tf.range(256))
    return look_up(images, tf.cast(tables, tf.uint8))


def channel_histograms(images: tf.Tensor) -> tf.Tensor:
    """Counts each level. uint8 [B, S, S, 3] -> int32 [B, 3, 256]."""
    images = tf.convert_to_tensor(images)
    batch_size = images.shape[0] or tf.shape(images)[0]
    image = tf.range(batch_size)[:, None, None, None] * 768
    bins = tf.cast(images, tf.int32) + tf.range(3) * 256 + image
    # `tf.math.bincount` does not compile under XLA.
    counts = tf.math.unsorted_segment_sum(tf.ones_like(bins), bins, batch_size * 768)
    return tf.reshape(counts, [batch_size, 3, 256])


def look_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Replaces each level by its entry in a table. tables: uint8 [B, 3, 256] or [B, 1, 256]."""
    channels = tables.shape[1]
    entries = tf.cast(images, tf.int32) + tf.range(channels) * 256
    shape = tf.shape(images)
    flat = tf.gather(
        tf.reshape(tables, [-1, channels * 256]), tf.reshape(entries, [shape[0], -1]), batch_dims=1
    )
    return tf.reshape(flat, shape)


# Blends, as in `PIL.ImageEnhance`: factor 0 gives a degenerate image, 1 the image itself.


def color(images: tf.Tensor, factors: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Changes the saturation: factor 0 is gray, above 1 is more colorful. factors: float32 [B]."""
    return _blend(_gray(images, compat), images, factors)


def contrast(images: tf.Tensor, factors: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Changes the contrast: factor 0 is the image's mean gray. factors: float32 [B].

    The library of the reference does not use the mean: it divides the number of pixels, instead
    of the sum of their grays, by 256 (https://github.com/tensorflow/models/issues/8328).
    """
    pixels = images.shape[1] * images.shape[2]
    if compat == "reference":
        mean = min(pixels // 256, 255)
    else:
        total = tf.reduce_sum(_gray(images, compat), axis=[1, 2], keepdims=True)
        mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean, images, factors)


def brightness(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Changes the brightness: factor 0 is black. factors: float32 [B], at least 0."""
    return _blend(tf.zeros([1, 1, 1, 1], tf.int32), images, factors)


def sharpness(images: tf.Tensor, factors: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Changes the sharpness: factor 0 is the smoothed image. factors: float32 [B].

    Smoothing takes the mean of 3x3 pixels in which the center has weight five. Pixels at the
    border are not changed.
    """
    levels = tf.cast(images, tf.int32)
    if images.shape[1] < 3:
        return images
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * levels[:, 1:-1, 1:-1]
    # Pillow rounds and the reference truncates. Totals are integers, so a small shift is safe.
    shift = 0.01 if compat == "reference" else 6.5
    smooth = tf.cast((tf.cast(total, tf.float32) + shift) * (1 / 13), tf.int32)
    inner = _blend(smooth, images[:, 1:-1, 1:-1], factors)
    middle = tf.concat([images[:, 1:-1, :1], inner, images[:, 1:-1, -1:]], axis=2)
    return tf.concat([images[:, :1], middle, images[:, -1:]], axis=1)


def grayscale(images: tf.Tensor, chosen: tf.Tensor, *, compat: str = "pillow") -> tf.Tensor:
    """Converts the chosen images to gray, in three equal channels. chosen: bool [B]."""
    gray = tf.cast(_gray(images, compat), tf.uint8)
    return tf.where(chosen[:, None, None, None], gray, images)


def _gray(images: tf.Tensor, compat: str) -> tf.Tensor:
    """The luma of Pillow's mode "L" or of TensorFlow. uint8 [B, S, S, 3] -> int32 [B, S, S, 1]."""
    if compat == "reference":
        parts = tf.cast(images, tf.float32) * (1 / 255)
        red, green, blue = tf.split(rounded_product(parts, tf.constant(GRAY_WEIGHTS)), 3, axis=-1)
        return tf.cast((red + green + blue) * 255.5, tf.int32)
    weights = tf.constant([19595, 38470, 7471])
    total = tf.reduce_sum(tf.cast(images, tf.int32) * weights, axis=-1, keepdims=True)
    return tf.bitwise.right_shift(total + 0x8000, 16)


def _blend(degenerate: tf.Tensor | int, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """trunc(degenerate + factor * (image - degenerate)), clipped to 0..255."""
    difference = tf.cast(images, tf.int32) - degenerate
    step = rounded_product(difference, tf.cast(factors, tf.float32)[:, None, None, None])
    values = tf.cast(degenerate, tf.float32) + step
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)
