"""The features that a loss receives: their shape and their norm."""

from __future__ import annotations

import tensorflow as tf


def as_views(features: tf.Tensor) -> tf.Tensor:
    """Converts features to float32 [B, V, D].

    Args:
        features: [B, V, D], [B, D] for one view, or [B, V, ...], which is flattened.

    Raises:
        ValueError: Another shape, an empty batch, or an unknown number of views or features.
    """
    features = tf.cast(tf.convert_to_tensor(features), tf.float32)
    rank = features.shape.rank
    if rank is None or rank < 2:
        raise ValueError(
            f"Invalid features rank: got the shape {features.shape}, expected [batch, views, "
            "features] or [batch, features]."
        )
    if features.shape[0] == 0:
        raise ValueError(
            f"The batch is empty: features have the shape {features.shape}. Drop empty batches, "
            "for example with dataset.batch(batch_size, drop_remainder=True)."
        )
    if rank == 2:
        return features[:, None, :]
    for name, axes in (("num_views", features.shape[1:2]), ("size", features.shape[2:])):
        if None in axes:
            raise ValueError(
                f"features has unknown {name}: got the shape {features.shape}. Only the batch "
                "size may be unknown; set the other dimensions with tf.ensure_shape."
            )
    if rank > 3:
        batch = tf.shape(features)[0]
        features = tf.reshape(features, [batch, features.shape[1], -1])  # [B, V, D]
    return features


def l2_normalize(features: tf.Tensor) -> tf.Tensor:
    """Divides by the L2 norm of the last axis, in float32; a zero vector stays zero.

    Each vector is divided by its largest entry first, so that the squares of very large and very
    small values neither overflow nor underflow. The gradient at a zero vector is zero.
    """
    features = tf.cast(features, tf.float32)
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(features), axis=-1, keepdims=True))
    is_zero = largest == 0.0
    features = features / tf.where(is_zero, 1.0, largest)
    square_norm = tf.reduce_sum(tf.square(features), axis=-1, keepdims=True)
    inverse = tf.math.rsqrt(tf.where(is_zero, 1.0, square_norm))
    return features * tf.where(is_zero, 0.0, inverse)
