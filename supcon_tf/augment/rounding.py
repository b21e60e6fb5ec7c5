"""Rounding that is the same in eager and in compiled code."""

from __future__ import annotations

import tensorflow as tf


def rounded_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The float32 product of two tensors, rounded before anything is added to it.

    XLA contracts `a * b + c` into one instruction that rounds only once. Products that are
    followed by an addition go through this function, so that compiled code gives the same bits.
    """
    return tf.cast(tf.cast(a, tf.float64) * tf.cast(b, tf.float64), tf.float32)


def to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Rounds to the nearest integer and clips to 0..255."""
    return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)
