"""A strategy for tracing the program of one TPU core on a machine without a TPU.

`tf.distribute.TPUStrategy` needs a TPU to trace anything. The strategy in this module has one
device but reports N replicas. Exchanges between replicas become XLA all-reduces over N replicas,
and gathers are written in the same way as by TPUStrategy. The functions can be lowered to HLO
(`tf.function.experimental_get_compiler_ir`), but not run, because the other replicas do not exist.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.distribute import distribute_lib, one_device_strategy


class OneOfManyStrategy(tf.distribute.Strategy):
    """Traces the program of one of `num_replicas` replicas on the CPU.

    Args:
        num_replicas: Number of cores of the slice.
    """

    def __init__(self, num_replicas: int):
        super().__init__(_Extended(self, num_replicas))


class _Extended(one_device_strategy.OneDeviceExtended):
    def __init__(self, strategy, num_replicas):
        super().__init__(strategy, "/device:CPU:0")
        self._replicas = num_replicas

    @property
    def _num_replicas_in_sync(self):
        return self._replicas

    def _call_for_each_replica(self, fn, args, kwargs):
        with _ReplicaContext(self._container_strategy(), gen_xla_ops.xla_replica_id()):
            return fn(*args, **kwargs)

    def _reduce_to(self, reduce_op, value, destinations, options):
        total = gen_xla_ops.xla_all_reduce(
            value, [list(range(self._replicas))], reduce_op="Add", mode="CrossReplica"
        )
        if reduce_op == tf.distribute.ReduceOp.MEAN:
            total /= tf.cast(self._replicas, total.dtype)
        return total

    def _get_local_replica_id(self, replica_id_in_sync_group):
        return replica_id_in_sync_group


class _ReplicaContext(distribute_lib.ReplicaContext):
    def all_gather(self, value, axis, options=None):
        """As in TPUReplicaContext: each replica fills its part of a zero tensor; all are summed."""
        replicas = self.num_replicas_in_sync
        mask = tf.cast(tf.one_hot(self.replica_id_in_sync_group, replicas), value.dtype)
        mask = tf.reshape(mask, [1] * axis + [replicas] + [1] * (value.shape.rank - axis))
        parts = self.all_reduce(tf.distribute.ReduceOp.SUM, tf.expand_dims(value, axis) * mask)
        shape = value.shape.as_list()
        shape[axis] *= replicas
        return tf.reshape(parts, shape)
