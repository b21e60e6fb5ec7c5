"""Strategies, and what the replicas of one exchange."""

from __future__ import annotations

import tensorflow as tf

STRATEGIES = ("auto", "one_device", "mirrored")


def create_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """The strategy of that name on the devices that TensorFlow sees.

    Args:
        name: "one_device"; "mirrored" over all GPUs, or without any over all logical CPUs;
            "auto" takes mirrored when there are several GPUs, else one device.

    Raises:
        ValueError: unknown name.
    """
    if name not in STRATEGIES:
        raise ValueError(f"Unknown strategy {name!r}: choose one of {', '.join(STRATEGIES)}.")
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy((gpus or cpus)[0])
    return tf.distribute.MirroredStrategy(gpus or cpus)


def split_cpu(num_devices: int) -> None:
    """Splits the CPU into logical devices; call it before TensorFlow touches any device."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    devices = [tf.config.LogicalDeviceConfiguration() for _ in range(num_devices)]
    tf.config.set_logical_device_configuration(cpu, devices)


def num_replicas() -> int:
    """How many replicas take part in the current replica context; 1 outside any."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def gather(values: tf.Tensor) -> tf.Tensor:
    """Concatenates the values of all replicas along axis 0; outside a replica, the values.

    The gradient of a replica's values collects what every replica's loss says of them. Every
    replica must hold the same shape. [B, ...] -> [N, ...].
    """
    if num_replicas() == 1:
        return values
    context = tf.distribute.get_replica_context()
    # The identity puts the values on the replica's device: an argument of the replica function
    # has none, and the collective of several workers then does not know where to send it.
    gathered = context.all_gather(tf.identity(values), axis=0)
    batch = values.shape[0]
    static = [None if batch is None else batch * num_replicas(), *values.shape[1:]]
    return tf.ensure_shape(gathered, static)


def replica_offset(batch: int | tf.Tensor) -> int | tf.Tensor:
    """The global index of this replica's first example, given `batch` examples per replica."""
    if num_replicas() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group * batch
