"""Loads weights of SupContrast's PyTorch ResNets (https://github.com/HobbitLong/SupContrast).

SupContrast names the layers of its CIFAR networks in its own way. Its released ImageNet checkpoint
has the network and the names of torchvision's ResNets (https://github.com/pytorch/vision). PyTorch
is not required.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import keras
import numpy as np
from keras import layers

from supcon_tf.interop import torch_file
from supcon_tf.models import resnet


def load_supcontrast(path: str, encoder: keras.Model) -> keras.Model:
    """Loads the weights of a SupContrast or torchvision ResNet checkpoint into an encoder.

    Build the encoder like the network of the checkpoint, with the normalization of its inputs as
    whitening constants. For SupContrast's CIFAR checkpoints:

        create_resnet(depth=50, image_size=32, first_conv_kernel_size=3, first_conv_stride=1,
                      use_initial_max_pool=False, mean=CIFAR10_MEAN, std=CIFAR10_STD)

    For its ImageNet checkpoint `supcon.pth` and other torchvision ResNets:

        create_resnet(depth=50, image_size=224, first_conv_kernel_size=7, first_conv_stride=2,
                      use_initial_max_pool=True, initial_max_pool_padding="symmetric",
                      mean=IMAGENET_MEAN, std=IMAGENET_STD)

    The constants are for images in [-1, 1]: mean = 2 m - 1 and std = 2 s, where m and s normalize
    images in [0, 1]. In PyTorch the first group of ResNet-18 and ResNet-34 has no convolution in
    its shortcut. The one here is set to the identity, up to rounding, in inference; further
    training updates its batch norm.

    Args:
        path: A `.pth` file.
        encoder: A model of `resnet.create_resnet`. It is changed in place.

    Returns:
        The encoder.

    Raises:
        ValueError: The file cannot be read, or the encoder is not the network of the file.
    """
    arrays = _encoder_arrays(torch_file.read_state_dict(path))
    unused = set(arrays)
    values = []
    for layer in encoder.layers:
        if not layer.weights:
            continue
        names, weights = _torch_weights(layer, arrays)
        unused -= set(names)
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if weights is None or [weight.shape for weight in weights] != shapes:
            raise ValueError(_mismatch(path, arrays, encoder, f"layer {layer.name}"))
        values.append((layer, weights))
    if unused:
        raise ValueError(_mismatch(path, arrays, encoder, first_names(sorted(unused)[:1])))
    difference = _stem_difference(arrays, encoder)
    if difference:
        raise ValueError(_mismatch(path, arrays, encoder, difference))
    for layer, weights in values:  # All or nothing.
        layer.set_weights(weights)
    return encoder


def load_supcontrast_head(path: str) -> keras.Model:
    """Loads the projection head of a SupContrast checkpoint: float32 [B, F] -> unit vectors [B, D].

    Every layer of it has a bias, and it expects embeddings that are not normalized:
    `ContrastiveModel(encoder, head, normalize_embedding=False)`.

    Args:
        path: A `.pth` file.

    Raises:
        ValueError: The file cannot be read or has no projection head.
    """
    arrays = torch_file.read_state_dict(path)
    names = sorted(name for name in arrays if re.fullmatch(r"head\.(\d\.)?weight", name))
    if not names:
        raise ValueError(f"{path} has no projection head; it holds {first_names(arrays)}.")
    kernels = [arrays[name] for name in names]
    biases = [arrays.get(name.replace("weight", "bias"), np.zeros(0)) for name in names]
    _check_head_shapes(path, [kernel.shape for kernel in kernels], [b.shape for b in biases])
    embeddings = keras.Input([kernels[0].shape[1]], dtype="float32")
    x = embeddings
    dense_layers = []
    for index, kernel in enumerate(kernels):
        dense_layers.append(layers.Dense(kernel.shape[0]))
        x = dense_layers[-1](layers.ReLU()(x) if index else x)
    x = layers.UnitNormalization(dtype="float32")(x)
    for layer, kernel, bias in zip(dense_layers, kernels, biases, strict=True):
        layer.set_weights([kernel.T, bias])
    return keras.Model(embeddings, x, name="projection_head")


def _check_head_shapes(path, kernels, biases):
    """Checks sizes from an untrusted file before memory is allocated for them."""
    is_chain = (
        all(len(kernel) == 2 and min(kernel) > 0 for kernel in kernels)
        and all(len(bias) == 1 for bias in biases)
        and [kernel[0] for kernel in kernels] == [bias[0] for bias in biases]
        and [kernel[1] for kernel in kernels[1:]] == [kernel[0] for kernel in kernels[:-1]]
    )
    if not is_chain:
        raise ValueError(
            f"{path} has a projection head whose layers do not fit together: weights {kernels}, "
            f"biases {biases}. Expected [out, in] and [out], where the input size of each layer is "
            "the output size of the layer before it."
        )


def _encoder_arrays(arrays):
    """Selects the tensors of the encoder, under SupContrast's names without a prefix.

    A state dict of torchvision has no prefix; its classifier is named `fc`.
    """
    prefix = "encoder." if any(name.startswith("encoder.") for name in arrays) else ""
    return {
        name.removeprefix(prefix).replace(".downsample.", ".shortcut."): array
        for name, array in arrays.items()
        if name.startswith(prefix)
        and not name.endswith("num_batches_tracked")
        and (prefix or not name.startswith(("fc.", "head.")))
    }


def _stem_difference(arrays, encoder):
    """Describes how the encoder's stem differs from that of the file's network, or returns None.

    The shapes of the weights cannot show a difference in the stride, the max pool or its padding.
    """
    kernel_size = arrays["conv1.weight"].shape[-1]
    stride = encoder.get_layer("stem_conv").strides[0]
    pools = [layer for layer in encoder.layers if isinstance(layer, layers.MaxPooling2D)]
    if any(pool.padding == "same" for pool in pools):
        return "the padding of its max pool (PyTorch pads all sides)"
    if stride != _stem_of(kernel_size)["first_conv_stride"]:
        return f"the stride {stride} of its first convolution"
    if bool(pools) != _stem_of(kernel_size)["use_initial_max_pool"]:
        return "its max pool" if pools else "its missing max pool"
    return None


def _stem_of(kernel_size):
    """Options of `create_resnet` for the stem of torchvision, or of SupContrast on CIFAR."""
    is_large = kernel_size > 3
    options = {
        "first_conv_kernel_size": kernel_size,
        "first_conv_stride": 2 if is_large else 1,
        "use_initial_max_pool": is_large,
    }
    return options | ({"initial_max_pool_padding": "symmetric"} if is_large else {})


def _torch_weights(layer, arrays):
    """Names in the checkpoint and weights in Keras' layout for a layer; None if not found."""
    name = _torch_name(layer.name)
    if isinstance(layer, layers.Conv2D):
        names = [f"{name}.weight"]
        if names[0] in arrays:
            return names, [
                arrays[names[0]].transpose(2, 3, 1, 0)
            ]  # [out, in, h, w] -> [h, w, in, out]
        channels = layer.kernel.shape[-2:]
        is_shortcut = name.endswith("shortcut.0") and channels[0] == channels[1]
        return [], [np.eye(channels[0], dtype=np.float32)[None, None]] if is_shortcut else None
    if isinstance(layer, layers.BatchNormalization):
        parts = ("weight", "bias", "running_mean", "running_var")
        names = [f"{name}.{part}" for part in parts]
        if all(name in arrays for name in names):
            return names, [arrays[name] for name in names]
        if (
            name.endswith("shortcut.1")
            and name.replace("shortcut.1", "shortcut.0.weight") not in arrays
        ):
            zeros, ones = (
                np.zeros(layer.gamma.shape, np.float32),
                np.ones(layer.gamma.shape, np.float32),
            )
            # Cancels the epsilon that batch norm adds to the variance of 1.
            return [], [np.sqrt(1 + layer.epsilon) * ones, zeros, zeros, ones]
    return [], None


def _torch_name(name):
    """Converts a layer name: group0_block1_conv2 -> layer1.1.conv2. Part 0 is the shortcut."""
    stem = {"stem_conv": "conv1", "stem_batch_normalization": "bn1"}
    if name in stem:
        return stem[name]
    found = re.fullmatch(r"group(\d)_block(\d+)_(conv|batch_normalization)(\d)", name)
    if not found:
        return name
    group, block, kind, part = found.groups()
    place = f"layer{int(group) + 1}.{block}"
    if part == "0":
        return f"{place}.shortcut.{0 if kind == 'conv' else 1}"
    return f"{place}.{'conv' if kind == 'conv' else 'bn'}{part}"


def _mismatch(path, arrays, encoder, where):
    """The message for a checkpoint that does not fit: what it holds, and the flags to build it."""
    blocks = [
        len({name.split(".")[1] for name in arrays if name.startswith(f"layer{group}.")})
        for group in (1, 2, 3, 4)
    ]
    is_bottleneck = "layer1.0.conv3.weight" in arrays
    depths = [
        str(depth)
        for depth, sizes in resnet.GROUP_SIZES.items()
        if list(sizes) == blocks and (depth >= 50) == is_bottleneck
    ]
    nothing = np.zeros([0])
    stem = arrays.get("conv1.weight", nothing).shape
    width = arrays.get("layer1.0.conv2.weight", nothing).shape[:2]
    if not depths or len(stem) != 4 or width != (64, 64):
        return (
            f"{path} does not fit the encoder {encoder.name}: it holds "
            f"{first_names(arrays) or 'no encoder'}, expected a ResNet of SupContrast or "
            "torchvision, of width 1."
        )
    options = {"depth": int(depths[0]), **_stem_of(stem[-1])}
    keywords = ", ".join(f"{name}={value!r}" for name, value in options.items())
    flags = " ".join(
        f"--{'resnet_' if name == 'depth' else ''}{name}={str(value).lower()}"
        for name, value in options.items()
    )
    return (
        f"{path} does not fit the encoder {encoder.name}, which differs in {where}: the file holds "
        f"a ResNet-{depths[0]} with a {stem[-1]}x{stem[-1]} stem. Build the encoder with "
        f"--encoder=resnet_v1 {flags}, in Python with create_resnet({keywords})."
    )


def first_names(names: Collection[str], count: int = 5) -> str:
    """Lists the first names for a message, made printable: a file may contain any name."""
    printable = (ascii(name[:200])[1:-1] for name in list(names)[:count])
    return ", ".join(printable) + (", ..." if len(names) > count else "")
