"""Batch norm: training with TensorFlow's fused kernel, statistics over replicas, frozen layers.

Keras 3 composes batch norm from elementwise operations, each of which reads and writes the whole
activation. The fused kernel needs two passes and keeps only its input for the backward pass,
which saves time and memory.

For statistics over several replicas, Keras exchanges the sum, the sum of squares and the number of
values one after the other, and two gradients in the backward pass. `synchronized_batch_norm`
exchanges once in each direction.
"""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

from supcon_tf import collectives

_FUSED_TYPES = (tf.float32, tf.bfloat16, tf.float16)


def use_fused_batch_norm(model: keras.Model) -> None:
    """Makes batch norm train with the fused kernel, or if synchronized, with fewer exchanges.

    Applies to nested models too, and to every way of training: `model.fit`, a custom loop, the
    stages of the command. The layers remain stock Keras layers: the model is saved, loaded and
    evaluated as before, and a model loaded with Keras alone trains with Keras' own operations.

    Keras' own operations are also used where the kernel does not apply: inputs that are not
    [B, H, W, C], frozen layers and masks.

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


def synchronized_batch_norm(
    values: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Batch norm with the statistics of all replicas, with one exchange in each direction.

    With m and v the mean and the variance over all positions of all replicas, and
    n = (x - m) / sqrt(v + epsilon), the outputs are n * scale + offset. For gradients g of the
    outputs, that of x is scale / sqrt(v + epsilon) * (g - mean(g) - n * mean(g * n)), with means
    over all replicas (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167). Statistics are
    computed in float32, and the variance as in Keras.

    Args:
        values: x, [B, H, W, C].
        scale, offset: float32 [C]. Their gradients are the sums over this replica.
        epsilon: added to the variance.

    Returns:
        The outputs [B, H, W, C]; m and v, float32 [C], without gradients.
    """
    outputs, mean, variance = _synchronized(values, scale, offset, epsilon)
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _synchronized(values, scale, offset, epsilon):
    axes = [0, 1, 2]

    @tf.custom_gradient
    def compute(values, scale, offset):
        x = tf.cast(values, tf.float32)
        count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        sums = tf.concat([tf.reduce_sum(x, axes), tf.reduce_sum(x * x, axes), [count]], axis=0)
        sums = collectives.add_up(sums)
        total = sums[-1]  # Replicas can hold different numbers of examples.
        mean, squares = tf.split(tf.math.divide_no_nan(sums[:-1], total), 2)
        variance = tf.maximum(squares - mean * mean, 0.0)
        inverse = tf.math.rsqrt(variance + epsilon)
        outputs = x * (inverse * scale) + (offset - mean * inverse * scale)

        def gradient(upstream, *_):
            g = tf.cast(upstream, tf.float32)
            normalized = (tf.cast(values, tf.float32) - mean) * inverse
            of_offset, of_scale = tf.reduce_sum(g, axes), tf.reduce_sum(g * normalized, axes)
            shared = collectives.add_up(tf.stack([of_offset, of_scale]))
            means = tf.math.divide_no_nan(shared, total)
            of_values = (inverse * scale) * (g - means[0] - normalized * means[1])
            return tf.cast(of_values, values.dtype), of_scale, of_offset

        return (tf.cast(outputs, values.dtype), mean, variance), gradient

    return compute(values, scale, offset)


def _call(layer, inputs, training=None, mask=None):
    """Replaces `BatchNormalization.call`, with the same results."""
    if not _is_fusible(layer, inputs, training, mask):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = inputs.shape[-1]
    scale = layer.gamma.value if layer.scale else tf.ones([channels])
    offset = layer.beta.value if layer.center else tf.zeros([channels])
    if layer.synchronized and collectives.num_replicas() > 1:
        outputs, mean, variance = synchronized_batch_norm(
            inputs, scale, offset, epsilon=layer.epsilon
        )
    else:
        outputs, mean, variance = _fused_batch_norm(inputs, scale, offset, layer.epsilon)
    for average, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        average.assign(average.value * layer.momentum + value * (1.0 - layer.momentum))
    return outputs


def _fused_batch_norm(inputs, scale, offset, epsilon):
    """Outputs, mean and biased variance from TensorFlow's fused kernel."""
    channels = inputs.shape[-1]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=tf.zeros([0]),
        variance=tf.zeros([0]),
        epsilon=epsilon,
        is_training=True,
    )
    # The kernel returns the unbiased variance; Keras averages the biased one.
    size = inputs.shape.num_elements()
    if size is None:
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
    else:
        count = np.float32(size // channels)
    return outputs, mean, variance * ((count - np.float32(1)) / count)


def _is_fusible(layer, inputs, training, mask):
    return (
        training
        and layer.trainable
        and mask is None
        and inputs.shape.rank == 4
        and layer.axis in (-1, 3)
        and inputs.dtype in _FUSED_TYPES
        and not getattr(layer, "renorm", False)
    )
