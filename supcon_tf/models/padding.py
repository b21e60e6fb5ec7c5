"""Padded convolutions that keep no padded copy of their input for the backward pass.

The gradient of a kernel needs the convolution's input. After a padding layer that is the padded
copy, which TensorFlow keeps beside the activation itself from the forward to the backward pass. In
a ResNet each strided convolution has one. Padding again in the backward pass costs little time.
It saves memory in a `tf.function`; XLA decides by itself what it keeps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf


def recompute_padding(model: keras.Model) -> None:
    """Makes convolutions after `ZeroPadding2D` layers pad again in the backward pass.

    Applies to nested models too. The results are the same up to rounding. The layers remain stock
    Keras layers: the model is saved, loaded and evaluated as before, and a model loaded with Keras
    alone trains with Keras' own operations. Other layers can still use the padded output.

    Args:
        model: Any Keras model. `ContrastiveModel` does this for its encoder.
    """
    for layer in model.layers:
        # On the instances: other classes would be saved under their own names, and the file would
        # then need supcon_tf to load.
        if isinstance(layer, keras.Model):
            recompute_padding(layer)
        elif type(layer) is keras.layers.ZeroPadding2D and layer.data_format == "channels_last":
            layer.call = functools.partial(_pad, layer)
        elif type(layer) is keras.layers.Conv2D and _is_plain(layer):
            layer.convolution_op = functools.partial(_convolve, layer)


def padded_convolution(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    *,
    padding: tuple[tuple[int, int], tuple[int, int]],
    strides: Sequence[int],
) -> tf.Tensor:
    """Pads with zeros and convolves; the backward pass pads again.

    Args:
        inputs: [B, H, W, C].
        kernel: [K, L, C, F], of the same type.
        padding: Zeros before and after, for rows and columns.
        strides: Of rows and columns.

    Returns:
        [B, H', W', F].
    """
    (top, bottom), (left, right) = padding
    widths = tf.constant([[0, 0], [top, bottom], [left, right], [0, 0]])
    options = {"strides": [1, *strides, 1], "padding": "VALID"}

    @tf.custom_gradient
    def compute(inputs, kernel):
        outputs = tf.raw_ops.Conv2D(input=tf.pad(inputs, widths), filter=kernel, **options)

        def gradient(upstream):
            # The dependency keeps TensorFlow from merging both paddings into one that is kept.
            with tf.control_dependencies([upstream]):
                padded = tf.pad(inputs, widths)
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=padded, filter_sizes=tf.shape(kernel), out_backprop=upstream, **options
            )
            of_padded = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(padded), filter=kernel, out_backprop=upstream, **options
            )
            rows, columns = tf.shape(inputs)[1], tf.shape(inputs)[2]
            return of_padded[:, top : top + rows, left : left + columns], of_kernel

        return outputs, gradient

    return compute(inputs, kernel)


def _is_plain(layer):
    return (
        layer.padding == "valid"
        and layer.groups == 1
        and layer.data_format == "channels_last"
        and set(layer.dilation_rate) == {1}
    )


def _pad(layer, inputs):
    """Replaces `ZeroPadding2D.call`; the output knows what was padded."""
    outputs = type(layer).call(layer, inputs)
    if isinstance(outputs, tf.Tensor):
        outputs.before_padding = inputs, layer.padding
    return outputs


def _convolve(layer, inputs, kernel):
    """Replaces `Conv2D.convolution_op`, with the same results."""
    before_padding = getattr(inputs, "before_padding", None)
    kernel = tf.convert_to_tensor(kernel)
    if before_padding is None or inputs.dtype != kernel.dtype:
        return type(layer).convolution_op(layer, inputs, kernel)
    unpadded, padding = before_padding
    return padded_convolution(unpadded, kernel, padding=padding, strides=layer.strides)
