"""A global batch shared among replicas."""

import tensorflow as tf


def share(context, array):
    """This replica's part of a global batch."""
    size = len(array) // context.num_replicas_in_sync
    return tf.constant(array[context.replica_id_in_sync_group * size :][:size])


def split(strategy, *arrays):
    return [
        strategy.experimental_distribute_values_from_function(
            lambda context, array=array: share(context, array)
        )
        for array in arrays
    ]
