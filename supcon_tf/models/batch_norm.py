"""Batch norm: training with TensorFlow's fused kernel, statistics over replicas, frozen layers.

Keras 3 composes batch norm from elementwise operations, each of which reads and writes the whole
activation. The fused kernel needs two passes and keeps only its input for the backward pass,
which saves time and memory.
"""

from __future__ import annotations

import functools

import keras
import numpy as np
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
    for layer in _batch_norm_layers(model):
        # On the instance: another class would be saved under its own name, and the file would then
        # need supcon_tf to load.
        layer.call = functools.partial(_call, layer)


def use_global_batch_norm(model: keras.Model, is_global: bool) -> None:
    """Computes batch statistics over all replicas, or of each replica alone.

    Args:
        model: Any Keras model; the batch norm layers of nested models are changed too.
        is_global: Whether the statistics are those of all replicas.
    """
    for layer in _batch_norm_layers(model):
        layer.synchronized = is_global  # Read at every call, and saved with the layer.


def freeze_batch_norm(model: keras.Model) -> None:
    """Freezes the batch norm layers of a model, also those of nested models.

    A frozen layer normalizes with its moving statistics in training too, and neither these nor
    its scale and offset change. Freeze before the optimizer is built.

    Raises:
        ValueError: The model has no batch norm layers.
    """
    found = list(_batch_norm_layers(model))
    if not found:
        raise ValueError(
            f"The encoder {model.name} has no batch norm layers to freeze: leave out "
            "--freeze_batch_norm (in Python, freeze_batch_norm=True)."
        )
    for layer in found:
        if layer.trainable:
            layer.trainable, layer.is_frozen_here = False, True


def unfreeze_batch_norm(model: keras.Model) -> None:
    """Reverses `freeze_batch_norm`, so that a trained model is saved as it was before."""
    for layer in _batch_norm_layers(model):
        if getattr(layer, "is_frozen_here", False):
            layer.trainable, layer.is_frozen_here = True, False


def _batch_norm_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _batch_norm_layers(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer


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
    size = inputs.shape.num_elements()
    if size is None:
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
    else:
        count = np.float32(size // channels)
    variance *= (count - np.float32(1)) / count
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
