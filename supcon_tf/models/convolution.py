"""Convolutions whose backward pass takes less memory, and less time in bfloat16 on a CPU.

The gradient of a kernel needs the convolution's input. After a padding layer that is the padded
copy, which TensorFlow keeps beside the activation itself from the forward to the backward pass. In
a ResNet each strided convolution has one. Padding again in the backward pass costs little time.
It saves memory in a `tf.function`; XLA decides by itself what it keeps.

On maps of at most 8 x 8 positions, this gradient is faster as a product of matrices for each
position of the kernel than with the kernel that TensorFlow takes from oneDNN for bfloat16: 1.1 to 4
times on two cores (AVX-512). In float32, on larger maps and with few channels it is slower.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from supcon_tf import xla

MOST_POSITIONS, FEWEST_CHANNELS = 64, 64  # For products of matrices; measured.


def use_lean_gradients(model: keras.Model) -> None:
    """Changes how convolutions compute their gradients, where that saves memory or time.

    Convolutions after `ZeroPadding2D` layers pad again in the backward pass. Applies to nested
    models too. The results are the same up to rounding. The layers remain stock Keras layers: the
    model is saved, loaded and evaluated as before, and a model loaded with Keras alone trains with
    Keras' own operations. Other layers can still use the padded output.

    Args:
        model: Any Keras model. `ContrastiveModel` does this for its encoder.
    """
    for layer in model.layers:
        # On the instances: other classes would be saved under their own names, and the file would
        # then need supcon_tf to load.
        if isinstance(layer, keras.Model):
            use_lean_gradients(layer)
        elif type(layer) is keras.layers.ZeroPadding2D and layer.data_format == "channels_last":
            layer.call = functools.partial(_pad, layer)
        elif type(layer) is keras.layers.Conv2D and _is_plain(layer):
            layer.convolution_op = functools.partial(_convolve, layer)


def padded_convolution(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    *,
    padding: tuple[tuple[int, int], tuple[int, int]] | None,
    strides: Sequence[int],
) -> tf.Tensor:
    """Pads with zeros and convolves; the backward pass pads again.

    Args:
        inputs: [B, H, W, C].
        kernel: [K, L, C, F], of the same type.
        padding: Zeros before and after, for rows and columns; None pads as "same" does.
        strides: Of rows and columns.

    Returns:
        [B, H', W', F].
    """
    (top, bottom), (left, right) = padding or ((0, 0), (0, 0))
    widths = tf.constant([[0, 0], [top, bottom], [left, right], [0, 0]])
    options = {"strides": [1, *strides, 1], "padding": "VALID" if padding else "SAME"}

    def pad(inputs):
        return tf.pad(inputs, widths) if padding else inputs

    @tf.custom_gradient
    def compute(inputs, kernel):
        outputs = tf.raw_ops.Conv2D(input=pad(inputs), filter=kernel, **options)
        is_product = _is_faster_as_product(kernel, outputs.shape[1:3])

        def gradient(upstream):
            sizes = tf.shape(inputs)
            # The dependency makes what follows wait for the backward pass. TensorFlow would compute
            # it in the forward pass, and keep it.
            with tf.control_dependencies([upstream]):
                if is_product:
                    of_kernel = kernel_gradient_as_product(
                        inputs,
                        tf.ensure_shape(upstream, outputs.shape),
                        kernel_size=kernel.shape[:2],
                        before=(top, left) if padding else _same_padding(inputs, kernel, strides),
                        strides=strides,
                    )
                else:
                    of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                        input=pad(inputs),
                        filter_sizes=tf.shape(kernel),
                        out_backprop=upstream,
                        **options,
                    )
            of_padded = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=sizes + tf.reduce_sum(widths, axis=1),
                filter=kernel,
                out_backprop=upstream,
                **options,
            )
            return of_padded[:, top : top + sizes[1], left : left + sizes[2]], of_kernel

        return outputs, gradient

    return compute(inputs, kernel)


def kernel_gradient_as_product(
    inputs: tf.Tensor,
    upstream: tf.Tensor,
    *,
    kernel_size: Sequence[int],
    before: Sequence[int],
    strides: Sequence[int],
) -> tf.Tensor:
    """The gradient of a convolution's kernel: for each position, inputs x gradient of the outputs.

    Args:
        inputs: [B, H, W, C], not padded. Everything but B is static, here and below.
        upstream: Gradient of the outputs, [B, H', W', F].
        kernel_size: (K, L).
        before: Zeros that the convolution pads above and to the left.
        strides: Of rows and columns.

    Returns:
        [K, L, C, F].
    """
    channels, filters = inputs.shape[-1], upstream.shape[-1]
    height, width = upstream.shape[1:3]
    # In [B, rows, stride, columns, stride, C], the inputs of a position of the kernel are a plain
    # slice. Taking every second row and column of [B, H, W, C] is several times slower.
    counts = [
        size + (kernel - 1) // stride
        for size, kernel, stride in zip((height, width), kernel_size, strides, strict=True)
    ]
    needed = [count * stride for count, stride in zip(counts, strides, strict=True)]
    after = [
        max(0, length - first - size)
        for length, first, size in zip(needed, before, inputs.shape[1:3], strict=True)
    ]
    padded = tf.pad(inputs, [[0, 0], *zip(before, after, strict=True), [0, 0]])
    padded = padded[:, : needed[0], : needed[1]]
    padded = tf.reshape(padded, [-1, counts[0], strides[0], counts[1], strides[1], channels])
    upstream = tf.reshape(upstream, [-1, filters])
    products = []
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            (top, y), (left, x) = divmod(row, strides[0]), divmod(column, strides[1])
            seen = padded[:, top : top + height, y, left : left + width, x]
            seen = tf.reshape(seen, [-1, channels])
            products.append(tf.matmul(seen, upstream, transpose_a=True))
    return tf.reshape(tf.stack(products), [*kernel_size, channels, filters])


def _is_faster_as_product(kernel, output_size):
    """Whether the gradient of a kernel is faster as a product; see above."""
    *kernel_size, channels, filters = kernel.shape
    return (
        kernel.dtype == tf.bfloat16
        and None not in tuple(output_size)
        and output_size[0] * output_size[1] <= MOST_POSITIONS
        and min(channels, filters) >= FEWEST_CHANNELS
        and kernel_size != [1, 1]
        and not xla.is_compiling()
        and all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
    )


def _same_padding(inputs, kernel, strides):
    """Zeros above and to the left of the inputs of a convolution with padding "same"."""
    before = []
    for size, length, stride in zip(inputs.shape[1:3], kernel.shape[:2], strides, strict=True):
        last = (size - 1) // stride * stride  # Where the last window starts, in padded rows.
        before.append(max(0, last + length - size) // 2)
    return before


def _is_plain(layer):
    return (
        layer.padding in ("valid", "same")
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
    kernel = tf.convert_to_tensor(kernel)
    unpadded, padding = getattr(inputs, "before_padding", (inputs, None))
    if layer.padding == "same":
        unpadded, padding = inputs, None
        sizes = zip(inputs.shape[1:3], layer.strides, strict=True)
        output_size = [None if size is None else -(-size // stride) for size, stride in sizes]
        is_changed = _is_faster_as_product(kernel, output_size)
    else:
        is_changed = padding is not None
    if not is_changed or inputs.dtype != kernel.dtype:
        return type(layer).convolution_op(layer, inputs, kernel)
    return padded_convolution(unpadded, kernel, padding=padding, strides=layer.strides)
