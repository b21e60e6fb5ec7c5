"""What labels say: which examples share a class, and which examples have no valid label."""

from __future__ import annotations

import tensorflow as tf

from supcon_tf.losses.blockwise import length


def as_class_labels(labels, features) -> tf.Tensor | None:
    """Class numbers [B], or memberships bool [B, C], or None."""
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
            f"Invalid labels shape {labels.shape}: features {features.shape} hold {batch} "
            f"examples, the labels {num_labels}."
        )
    if rank == 2 and labels.shape[1] != 1:
        memberships = tf.cast(labels, tf.bool)
        if labels.dtype.is_floating:  # A row that holds NaN shares no class with others.
            memberships &= ~tf.reduce_any(tf.math.is_nan(labels), axis=1, keepdims=True)
        return memberships
    labels = tf.reshape(labels, [-1])
    return tf.cast(labels, tf.int32) if labels.dtype == tf.bool else labels


def class_index(labels: tf.Tensor) -> tf.Tensor:
    """Numbers the classes from 0, in linear memory and with static shapes. [N] -> int32 [N].

    Each NaN is a class of its own.
    """
    order = tf.argsort(_sortable(labels))
    in_order = tf.gather(labels, order)
    is_new = tf.cast(in_order[1:] != in_order[:-1], tf.int32)  # NaN differs from NaN.
    index_in_order = tf.concat([tf.zeros_like(order[:1]), tf.cumsum(is_new)], axis=0)
    # Each sum has one term. tf.vectorized_map has no fast rule for tf.scatter_nd.
    return tf.math.unsorted_segment_sum(index_in_order, order, length(labels))


def nan_where_label_is_nan(losses: tf.Tensor, labels: tf.Tensor | None) -> tf.Tensor:
    """The losses [B], NaN where the label is NaN or holds NaN: [B] or [B, C], any type."""
    if labels is None:
        return losses
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_floating:
        return losses
    is_nan = tf.math.is_nan(labels)
    if labels.shape.rank > 1:
        is_nan = tf.reduce_any(is_nan, axis=1)
    return tf.where(is_nan, float("nan"), losses)


def _sortable(labels):
    """Integers in the order of the labels, with NaN before or after all of them.

    No order among floats is defined once NaN is one of them, so a sort may tear classes apart.
    The bits of a float, read as an integer, rise with it; for negative ones they fall.
    """
    if not labels.dtype.is_floating:
        return labels
    is_wide = labels.dtype == tf.float64
    floats, integers = (tf.float64, tf.int64) if is_wide else (tf.float32, tf.int32)
    bits = tf.bitcast(tf.cast(labels, floats), integers)
    return tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, integers.max), bits)


def relations(labels, all_labels, example, num_examples) -> tuple[tf.Tensor, tf.Tensor]:
    """For examples b and n: are they the same one, do they share a class? Both bool [B, N].

    `labels` are those of the examples with the global numbers `example` [B].
    """
    own = example[:, None] == tf.range(num_examples)
    if labels is None:
        return own, own
    if labels.shape.rank == 1:
        return own, labels[:, None] == all_labels[None, :]
    shared = tf.matmul(
        tf.cast(labels, tf.float32), tf.cast(all_labels, tf.float32), transpose_b=True
    )
    return own, shared > 0.0


def are_numbers(labels) -> bool:
    """Whether labels are class numbers [B], not memberships and not None."""
    return labels is not None and labels.shape.rank == 1
