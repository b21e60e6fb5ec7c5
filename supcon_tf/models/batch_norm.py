"""Batch norm that trains with TensorFlow's fused kernel.

Keras 3 composes batch norm from elementwise operations, each of which reads and writes the whole
activation. The fused kernel needs two passes and keeps only its input for the backward pass,
which saves time and memory.
"""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

_FUSED_TYPES = (tf.float32, tf.bfloat16, tf.float16)


def use_fused_batch_norm(model: keras.Model) -> None:
    """Makes the batch norm layers of a model train with the fused kernel.

    Applies to nested models too, and to every way of training: `model.fit`, a custom loop, the
    stages of the command. The layers remain stock Keras layers: the model is saved, loaded and
    evaluated as before, and a model loaded with Keras alone trains with Keras' own operations.

    Keras' own operations are also used where the kernel does not apply: inputs that are not
    [B, H, W, C], frozen layers, masks, and statistics synchronized over several replicas.

    Args:
        model: Any Keras model. `ContrastiveModel` does this for its encoder.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            use_fused_batch_norm(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            # On the instance: another class would be saved under its own name, and the file
            # would then need supcon_tf to load.
            layer.call = functools.partial(_call, layer)


def _call(layer, inputs, training=None, mask=None):
    """Replaces `BatchNormalization.call`, with the same results."""
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
