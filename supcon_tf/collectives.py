"""What replicas exchange (gathered values, with gradients, and sums), and which replica this is."""

from __future__ import annotations

import tensorflow as tf


def num_replicas() -> int:
    """Number of replicas in the current replica context; 1 outside of one."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def gather(values: tf.Tensor) -> tf.Tensor:
    """Concatenates the values of all replicas along axis 0: [B, ...] -> [N, ...].

    Outside of a replica context it returns the values unchanged. The gradient with respect to a
    replica's values sums the contributions of the losses of all replicas. If the loss is divided
    by the number of replicas and gradients are summed, as Keras does, this is the gradient of the
    loss over the global batch.

    Raises:
        ValueError: The replicas hold different numbers of examples, with static shapes.
        tf.errors.InvalidArgumentError: The same, found at run time.
    """
    if num_replicas() == 1:
        return values
    context = tf.distribute.get_replica_context()
    # The identity places the values on the replica's device: arguments of the replica function
    # have no device, and collectives of several workers need one.
    is_bool = values.dtype == tf.bool  # Not supported by every collective.
    values = tf.cast(values, tf.int32) if is_bool else tf.identity(values)
    gathered = _check_equal_shares(values, context.all_gather(values, axis=0))
    return tf.cast(gathered, tf.bool) if is_bool else gathered


def _check_equal_shares(values, gathered):
    """Sets the static shape, and raises an error for unequal shares."""
    message = (
        "The replicas hold different numbers of examples, but the loss over the global batch needs "
        f"equal shares: use drop_remainder=True and a batch size divisible by {num_replicas()}."
    )
    batch, total = values.shape[0], gathered.shape[0]
    if batch is not None and total is not None:
        if total != batch * num_replicas():
            raise ValueError(f"{message} This replica holds {batch} of {total} examples.")
        return gathered
    # Comparing with the total needs no further exchange between replicas.
    check = tf.debugging.assert_equal(
        tf.shape(gathered)[0], tf.shape(values)[0] * num_replicas(), message
    )
    with tf.control_dependencies([] if check is None else [check]):
        gathered = tf.identity(gathered)
    static = None if batch is None else batch * num_replicas()
    # Not tf.ensure_shape, which would fail before the check above.
    gathered.set_shape([static, *values.shape[1:]])
    return gathered


def add_up(values: tf.Tensor) -> tf.Tensor:
    """The sum of the values of all replicas, which each of them gets.

    Call it inside a custom gradient, which decides what the backward pass exchanges.
    """
    if num_replicas() == 1:
        return values
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values))


def replica_index() -> int | tf.Tensor:
    """Number of the current replica; 0 outside of a replica context."""
    return replica_offset(1)


def replica_offset(batch: int | tf.Tensor) -> int | tf.Tensor:
    """Global index of this replica's first example, with `batch` examples per replica."""
    if num_replicas() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group * batch
