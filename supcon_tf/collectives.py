"""What the replicas exchange: gathered tensors with gradients, and where a replica's rows stand."""

from __future__ import annotations

import tensorflow as tf


def num_replicas() -> int:
    """How many replicas take part in the current replica context; 1 outside any."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def gather(values: tf.Tensor) -> tf.Tensor:
    """Concatenates the values of all replicas along axis 0; outside a replica, the values.

    The gradient of a replica's values collects what every replica's loss says of them: with the
    loss divided by the number of replicas and gradients summed, as Keras does, it is the
    gradient of the global batch. [B, ...] -> [N, ...].

    Raises:
        ValueError, tf.errors.InvalidArgumentError: the replicas hold different numbers of
            examples; the first where the shapes are static.
    """
    if num_replicas() == 1:
        return values
    context = tf.distribute.get_replica_context()
    # The identity puts the values on the replica's device: an argument of the replica function
    # has none, and the collective of several workers then does not know where to send it.
    is_bool = values.dtype == tf.bool  # which not every collective can carry
    values = tf.cast(values, tf.int32) if is_bool else tf.identity(values)
    gathered = _check_equal_shares(values, context.all_gather(values, axis=0))
    return tf.cast(gathered, tf.bool) if is_bool else gathered


def _check_equal_shares(values, gathered):
    """Sets the static shape, or refuses a ragged batch when it comes."""
    message = (
        "The replicas hold different numbers of examples. The loss over the global batch needs "
        f"equal shares: batch with drop_remainder=True, in a size divisible by {num_replicas()}."
    )
    batch, total = values.shape[0], gathered.shape[0]
    if batch is not None and total is not None:
        if total != batch * num_replicas():
            raise ValueError(f"{message} Here {batch} of {total}.")
        return gathered
    # Shares are equal if every replica holds its part of the total: no further exchange.
    check = tf.debugging.assert_equal(
        tf.shape(gathered)[0], tf.shape(values)[0] * num_replicas(), message
    )
    with tf.control_dependencies([] if check is None else [check]):
        gathered = tf.identity(gathered)
    static = None if batch is None else batch * num_replicas()
    gathered.set_shape([static, *values.shape[1:]])  # ensure_shape would fail before the check
    return gathered


def replica_offset(batch: int | tf.Tensor) -> int | tf.Tensor:
    """The global index of this replica's first example, given `batch` examples per replica."""
    if num_replicas() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group * batch
