"""Interpreting labels: which examples share a class, and which have no valid label."""

from __future__ import annotations

import tensorflow as tf

from supcon_tf.losses.row_blocks import length


def as_class_labels(labels: tf.Tensor | None, features: tf.Tensor) -> tf.Tensor | None:
    """Converts labels to class numbers [B] or class memberships bool [B, C]; None stays None.

    Raises:
        ValueError: If the labels are strings, or their shape is invalid or does not match the
            features.
    """
    if labels is None:
        return None
    labels = tf.convert_to_tensor(labels)
    if labels.dtype == tf.string:
        raise ValueError(
            "Invalid labels of type string: expected class numbers. Number the classes first, for "
            "example with np.unique(labels, return_inverse=True)[1] or keras.layers.StringLookup."
        )
    rank = labels.shape.rank
    if rank not in (1, 2):
        raise ValueError(
            f"Invalid labels shape {labels.shape}: expected class numbers [batch] or [batch, 1], "
            "or one-hot or multi-hot [batch, classes]."
        )
    batch, num_labels = features.shape[0], labels.shape[0]
    if batch is not None and num_labels is not None and batch != num_labels:
        raise ValueError(
            f"Invalid labels shape {labels.shape}: expected {batch} labels for features of shape "
            f"{features.shape}, got {num_labels}."
        )
    if rank == 2 and labels.shape[1] != 1:
        memberships = tf.cast(labels, tf.bool)
        if labels.dtype.is_floating:  # A row with NaN shares no class with others.
            memberships &= ~tf.reduce_any(tf.math.is_nan(labels), axis=1, keepdims=True)
        return memberships
    labels = tf.reshape(labels, [-1])
    return tf.cast(labels, tf.int32) if labels.dtype == tf.bool else labels


def class_index(labels: tf.Tensor) -> tf.Tensor:
    """Numbers the classes from 0, in linear memory and with static shapes. [N] -> int32 [N].

    Each NaN counts as a separate class.
    """
    order = tf.argsort(_sortable(labels))
    in_order = tf.gather(labels, order)
    is_new = tf.cast(in_order[1:] != in_order[:-1], tf.int32)  # NaN differs from NaN.
    index_in_order = tf.concat([tf.zeros_like(order[:1]), tf.cumsum(is_new)], axis=0)
    # Scatters the values, one per sum. tf.scatter_nd would be slow under tf.vectorized_map.
    return tf.math.unsorted_segment_sum(index_in_order, order, length(labels))


def nan_where_label_is_nan(losses: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
    """Sets the loss of an example to NaN if its label is or contains NaN.

    Args:
        losses: float32 [B].
        labels: [B, ...] of any type, or None.
    """
    if labels is None:
        return losses
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_floating:
        return losses
    return tf.where(is_nan_label(labels), float("nan"), losses)


def is_nan_label(labels: tf.Tensor) -> tf.Tensor:
    """Whether the label of an example is or contains NaN. Floats [B, ...] -> bool [B]."""
    return tf.reduce_any(tf.math.is_nan(labels), axis=list(range(1, labels.shape.rank)))


def _sortable(labels):
    """Integers that sort like the labels, with NaN before or after all other values.

    Floats with NaN among them have no defined order, so sorting them may separate examples of the
    same class. The bits of a float, read as an integer, increase with a positive float and
    decrease with a negative one.
    """
    if not labels.dtype.is_floating:
        return labels
    is_wide = labels.dtype == tf.float64
    floats, integers = (tf.float64, tf.int64) if is_wide else (tf.float32, tf.int32)
    bits = tf.bitcast(tf.cast(labels, floats), integers)
    return tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, integers.max), bits)


def relations(
    labels: tf.Tensor | None,
    all_labels: tf.Tensor | None,
    example: tf.Tensor,
    num_examples: int | tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Compares some examples with all examples of the global batch.

    Args:
        labels: Labels [B] or bool [B, C] of some examples, from `as_class_labels`.
        all_labels: Labels [N] or bool [N, C] of all examples.
        example: int32 [B], the global indices of the examples that `labels` belong to.
        num_examples: N.

    Returns:
        Two tensors bool [B, N]: whether both are the same example, and whether both share a
        class. Without labels, an example shares its class only with itself.
    """
    own = example[:, None] == tf.range(num_examples)
    if labels is None or all_labels is None:
        return own, own
    if labels.shape.rank == 1:
        return own, labels[:, None] == all_labels[None, :]
    shared = tf.matmul(
        tf.cast(labels, tf.float32), tf.cast(all_labels, tf.float32), transpose_b=True
    )
    return own, shared > 0.0


def are_numbers(labels: tf.Tensor | None) -> bool:
    """Whether the labels are class numbers [B], rather than memberships [B, C] or None."""
    return labels is not None and labels.shape.rank == 1
