"""Batch norm in training by TensorFlow's fused kernel.

Keras 3 composes batch norm of elementwise operations, each of which reads and writes the whole
activation. The fused kernel does the same in two passes and keeps only its input for the
backward pass: less time and less memory.
"""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

_FUSED_TYPES = (tf.float32, tf.bfloat16, tf.float16)


def fuse_batch_norm(model: keras.Model) -> None:
    """Makes the batch norm layers of a model, and of models inside it, train with one kernel.

    The layers stay what they are, so the model is saved, loaded and evaluated as before. A
    layer that synchronises its statistics over several replicas keeps Keras' own way.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            fuse_batch_norm(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.call = functools.partial(_call, layer)


def _call(layer, inputs, training=None, mask=None):
    """What BatchNormalization.call does, for inputs [B, H, W, C]."""
    if not _is_fusible(layer, inputs, training, mask):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma.value if layer.scale else tf.ones([channels]),
        offset=layer.beta.value if layer.center else tf.zeros([channels]),
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=layer.epsilon,
        is_training=True,
    )
    # The kernel returns the unbiased variance; Keras averages the biased one.
    count = tf.cast(tf.size(inputs) // channels, tf.float32)
    variance *= (count - 1.0) / count
    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        average.assign(average.value * layer.momentum + value * (1.0 - layer.momentum))
    return outputs


def _is_fusible(layer, inputs, training, mask):
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return (
        training
        and layer.trainable
        and mask is None
        and inputs.shape.rank == 4
        and layer.axis in (-1, 3)
        and inputs.dtype in _FUSED_TYPES
        and not (layer.synchronized and replicas > 1)
        and not getattr(layer, "renorm", False)
    )
