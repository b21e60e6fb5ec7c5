"""The encoders of the paper, ResNet v1 and ResNeXt, and a tiny ResNet for small images.

They are functional Keras models of stock layers, so a saved encoder loads without supcon_tf:
float32 images [B, S, S, 3] in 0..255 -> float32 features [B, F].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import layers

# Residual blocks in each of the four groups (He et al. 2016, Table 1; depth 200 as He et al.,
# "Identity mappings", 2016).
GROUP_SIZES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
RESNEXT_DEPTHS = (50, 101, 152, 200)
MAX_POOL_PADDINGS = ("same", "symmetric")
ARCHITECTURES = ("resnet_v1", "resnext", "tiny")
RESNEXT_GROUPS = 64
# Default stem: that of ImageNet for images of at least this size, else that of CIFAR.
IMAGENET_STEM_PX = 64
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


def create_resnet(
    *,
    architecture: str = "resnet_v1",
    depth: int = 50,
    width: int = 1,
    image_size: int = 224,
    first_conv_kernel_size: int | None = None,
    first_conv_stride: int | None = None,
    use_initial_max_pool: bool | None = None,
    initial_max_pool_padding: str = "same",
    use_global_batch_norm: bool = True,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> keras.Model:
    """Builds a ResNet v1 or ResNeXt as in the reference implementation.

    The 3x3 convolution of a bottleneck block has the stride, the first block of every group has a
    projection shortcut, and gamma of the last batch norm of a residual branch starts at 0 (except
    in ResNeXt).

    Args:
        architecture: "resnet_v1", "resnext" (64 groups), or "tiny": one basic block in each of
            three groups, for images of 8 to 32 pixels (depth is ignored).
        depth: 18, 34, 50, 101, 152 or 200; at least 50 for ResNeXt.
        width: Multiplier of the number of channels.
        image_size: S in pixels.
        first_conv_kernel_size, first_conv_stride, use_initial_max_pool: The stem. None chooses by
            image size: the ImageNet stem (7, 2 and a max pool) for 64 px or more, the CIFAR stem
            (3, 1 and no max pool) for smaller images.
        initial_max_pool_padding: "same" pads the initial max pool as TensorFlow does: for an even
            size, one pixel at the bottom and on the right. "symmetric" pads one pixel on every
            side as PyTorch does, which weights of torchvision's ResNets require.
        use_global_batch_norm: Compute batch statistics over all replicas, not per replica.
        mean, std: Whitening constants per channel, for images scaled to [-1, 1].

    Returns:
        A model float32 [B, S, S, 3] in 0..255 -> float32 [B, F].

    Raises:
        ValueError: Unknown architecture, depth or padding, or a padding without a max pool.
    """
    if initial_max_pool_padding not in MAX_POOL_PADDINGS:
        raise ValueError(
            f"Unknown initial_max_pool_padding {initial_max_pool_padding!r}: choose one of "
            f"{', '.join(MAX_POOL_PADDINGS)}."
        )
    if architecture == "tiny":
        group_sizes: tuple[int, ...] = (1, 1, 1)
        block, base_filters = _basic_block, 16
    elif architecture in ARCHITECTURES:
        depths = RESNEXT_DEPTHS if architecture == "resnext" else tuple(GROUP_SIZES)
        if depth not in depths:
            raise ValueError(f"{depth} is not a valid {architecture} depth: choose from {depths}.")
        group_sizes, base_filters = GROUP_SIZES[depth], 64
        block = _basic_block if depth < 50 else _bottleneck_block
        block = _resnext_block if architecture == "resnext" else block
    else:
        raise ValueError(
            f"Unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}."
        )
    is_small = image_size < IMAGENET_STEM_PX
    if first_conv_kernel_size is None:
        first_conv_kernel_size = 3 if is_small else 7
    if first_conv_stride is None:
        first_conv_stride = 1 if is_small else 2
    if use_initial_max_pool is None:
        use_initial_max_pool = not is_small
    if initial_max_pool_padding != "same" and not use_initial_max_pool:
        raise ValueError(
            f"initial_max_pool_padding={initial_max_pool_padding!r} has no effect without a "
            "max pool: add use_initial_max_pool=True."
        )
    norm = functools.partial(_batch_norm, synchronized=use_global_batch_norm)

    images = keras.Input([image_size, image_size, 3], dtype="float32", name="image")
    x = scale_and_whiten(images, mean=mean, std=std)
    x = _conv(x, base_filters * width, first_conv_kernel_size, first_conv_stride, name="stem_conv")
    x = layers.ReLU()(norm(x, name="stem_batch_normalization"))
    if use_initial_max_pool:
        x = _max_pool(x, initial_max_pool_padding)
    for group, num_blocks in enumerate(group_sizes):
        for index in range(num_blocks):
            stride = 2 if group > 0 and index == 0 else 1
            filters = base_filters * 2**group * width
            name = f"group{group}_block{index}"
            x = block(x, filters, stride, norm, project=index == 0, name=name)
    features = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    name = architecture if architecture == "tiny" else f"{architecture}_{depth}"
    return keras.Model(images, features, name=name)


def scale_and_whiten(
    images: tf.Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tf.Tensor:
    """Scales 0..255 to [-1, 1], then computes (x - mean) / std if constants are given."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32")(images)
    if mean is not None:
        variance = [value**2 for value in std or ()]
        x = layers.Normalization(mean=list(mean), variance=variance, dtype="float32")(x)
    return x


def _batch_norm(x, *, synchronized, name, gamma_initializer="ones"):
    return layers.BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        gamma_initializer=gamma_initializer,
        synchronized=synchronized,
        name=name,
    )(x)


def _max_pool(x, padding):
    if padding == "symmetric":
        # PyTorch pads with -inf. After a ReLU zeros have the same effect on the maximum.
        x = layers.ZeroPadding2D(1)(x)
        padding = "valid"
    return layers.MaxPooling2D(3, strides=2, padding=padding, name="stem_max_pool")(x)


def _conv(x, filters, kernel_size, stride=1, groups=1, *, name):
    """A convolution without bias. With a stride, it pads (k-1)//2 before and the rest after."""
    if stride > 1 and kernel_size > 1 and groups == 1:
        before = (kernel_size - 1) // 2
        after = kernel_size - 1 - before
        x = layers.ZeroPadding2D(((before, after), (before, after)))(x)
        padding = "valid"
    else:
        padding = "same"
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        groups=groups,
        use_bias=False,
        # TensorFlow 1's variance_scaling_initializer().
        kernel_initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal"),
        name=name,
    )(x)


def _conv_norm(x, norm, filters, kernel_size, stride=1, *, name, part, groups=1, **norm_options):
    """Convolution and batch norm, named `<name>_conv<part>` and `<name>_batch_normalization<part>`.

    The names do not depend on other models in the process, so weights can be matched by name.
    """
    x = _conv(x, filters, kernel_size, stride, groups, name=f"{name}_conv{part}")
    return norm(x, name=f"{name}_batch_normalization{part}", **norm_options)


def _shortcut(x, filters, stride, norm, project, name):
    return _conv_norm(x, norm, filters, 1, stride, name=name, part=0) if project else x


def _basic_block(x, filters, stride, norm, project, name):
    shortcut = _shortcut(x, filters, stride, norm, project, name)
    x = layers.ReLU()(_conv_norm(x, norm, filters, 3, stride, name=name, part=1))
    x = _conv_norm(x, norm, filters, 3, name=name, part=2, gamma_initializer="zeros")
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _bottleneck_block(x, filters, stride, norm, project, name):
    shortcut = _shortcut(x, 4 * filters, stride, norm, project, name)
    x = layers.ReLU()(_conv_norm(x, norm, filters, 1, name=name, part=1))
    x = layers.ReLU()(_conv_norm(x, norm, filters, 3, stride, name=name, part=2))
    x = _conv_norm(x, norm, 4 * filters, 1, name=name, part=3, gamma_initializer="zeros")
    return layers.ReLU()(layers.Add()([x, shortcut]))


def _resnext_block(x, filters, stride, norm, project, name):
    shortcut = _shortcut(x, 4 * filters, stride, norm, project, name)
    x = layers.ReLU()(_conv_norm(x, norm, 2 * filters, 1, name=name, part=1))
    groups = RESNEXT_GROUPS
    x = _conv_norm(x, norm, 2 * filters, 3, stride, name=name, part=2, groups=groups)
    x = _conv_norm(layers.ReLU()(x), norm, 4 * filters, 1, name=name, part=3)
    return layers.ReLU()(layers.Add()([x, shortcut]))
