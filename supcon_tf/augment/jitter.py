"""SimCLR's color jitter: brightness, contrast, saturation and hue in a random order.

With s the strength (1 for ImageNet, 0.5 for CIFAR-10; Chen et al. 2020,
https://arxiv.org/abs/2002.05709, appendix A), the variants are:

* "tensorflow" adds up to 0.8 s of the range to the brightness, and scales the contrast about each
  channel's mean and the saturation in HSV by 1 +- 0.8 s.
* "torchvision" multiplies the brightness, the contrast about the mean gray, and the saturation
  about each pixel's gray, by 1 +- 0.8 s, but not less than 0.
* Both shift the hue by up to 0.2 s of the color circle.

Values are clipped to the range of levels after each of the four operations.
"""

from __future__ import annotations

import tensorflow as tf

from supcon_tf.augment import loops
from supcon_tf.augment.color import GRAY_WEIGHTS
from supcon_tf.augment.rounding import to_uint8

JITTER_VARIANTS = ("tensorflow", "torchvision")
JITTER_DRAWS = 8


def plan_jitter(draws: tf.Tensor, *, strength: float, variant: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws the amount of each operation and their order.

    Args:
        draws: float32 [B, JITTER_DRAWS] in [0, 1): four amounts, then four numbers whose order is
            the order of the operations.
        strength: see the module.
        variant: one of JITTER_VARIANTS.

    Returns:
        The amounts, float32 [B, 4], and the order, int32 [B, 4].
    """
    check_jitter(strength, variant)
    spread, turn = 0.8 * strength, 0.2 * strength
    low = max(0.0, 1.0 - spread)
    lows = [low, low, low, -turn]
    highs = [1.0 + spread, 1.0 + spread, 1.0 + spread, turn]
    if variant == "tensorflow":
        lows[0], highs[0] = -spread, spread
    amounts = tf.constant(lows) + draws[:, :4] * (tf.constant(highs) - tf.constant(lows))
    return amounts, tf.argsort(draws[:, 4:8], axis=1)


def check_jitter(strength: float, variant: str) -> None:
    """Raises ValueError for an unknown variant or a strength out of its range."""
    if variant not in JITTER_VARIANTS:
        raise ValueError(f"Unknown jitter variant {variant!r}: choose one of {JITTER_VARIANTS}.")
    limit = 1.25 if variant == "tensorflow" else 2.5
    if not 0 <= strength <= limit:
        raise ValueError(
            f"The {variant} color jitter expects a strength from 0 to {limit}, got {strength}. "
            "Beyond it, contrast and saturation would become negative or the hue would shift by "
            "more than half a circle. Lower --augmentation_magnitude."
        )


def apply_jitter(
    images: tf.Tensor, amounts: tf.Tensor, order: tf.Tensor, *, variant: str
) -> tf.Tensor:
    """Applies the operations with the amounts and the order of `plan_jitter`.

    uint8 [B, S, S, 3] -> uint8 [B, S, S, 3].
    """
    steps = {
        "tensorflow": (_add_brightness, _stretch_channels, _saturate_hsv, _turn_hue),
        "torchvision": (_scale_brightness, _stretch_gray, _saturate_gray, _turn_hue),
    }[variant]

    def step(turn: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        branches = [lambda k=k: steps[k](values, amounts[:, k, None, None, None]) for k in range(4)]
        chosen = loops.select(tf.gather(order, turn, axis=1), branches)
        return tf.clip_by_value(chosen, 0.0, 255.0)

    values = loops.in_turn(step, tf.cast(images, tf.float32), 4)
    return to_uint8(values)


def _add_brightness(values, amount):
    return values + amount * 255.0


def _scale_brightness(values, amount):
    return values * amount


def _stretch_channels(values, amount):
    mean = tf.reduce_mean(values, axis=[1, 2], keepdims=True)
    return mean + (values - mean) * amount


def _stretch_gray(values, amount):
    mean = tf.reduce_mean(_luma(values), axis=[1, 2], keepdims=True)
    return mean + (values - mean) * amount


def _saturate_gray(values, amount):
    gray = _luma(values)
    return gray + (values - gray) * amount


def _saturate_hsv(values, amount):
    """Scales the saturation 1 - min / max, up to 1. The hue and the maximum do not change."""
    top = tf.reduce_max(values, axis=-1, keepdims=True)
    chroma = top - tf.reduce_min(values, axis=-1, keepdims=True)
    amount = tf.minimum(amount, top / tf.maximum(chroma, 1e-6))
    return top - (top - values) * amount


def _turn_hue(values, turns):
    """Shifts the hue by a fraction of the color circle."""
    top = tf.reduce_max(values, axis=-1, keepdims=True)
    chroma = top - tf.reduce_min(values, axis=-1, keepdims=True)
    red, green, blue = tf.split(values, 3, axis=-1)
    hue = tf.where(top == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = tf.where(top == red, green - blue, hue) / tf.maximum(chroma, 1e-6)  # sixths
    distance = hue + 6.0 * turns + tf.constant([5.0, 3.0, 1.0])
    # `tf.math.floormod` calls a function for every value, which takes ten times as long.
    distance -= 6.0 * tf.floor(distance * (1 / 6))
    return top - chroma * tf.clip_by_value(tf.minimum(distance, 4.0 - distance), 0.0, 1.0)


def _luma(values):
    return tf.reduce_sum(values * tf.constant(GRAY_WEIGHTS), axis=-1, keepdims=True)
