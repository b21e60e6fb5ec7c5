"""Encoders as other people save them: stock Keras layers, images float32 in 0..255 -> features."""

import keras
from keras import layers


def small_convolution(side=20, *, filters=8, name="small_convolution"):
    """Two convolutions with batch norm; `side` may be None."""
    images = keras.Input([side, side, 3], dtype="float32")
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    for count in (filters, 2 * filters):
        x = layers.Conv2D(count, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(images, layers.GlobalAveragePooling2D()(x), name=name)


def tiny_vit(side=20, *, patch=5, width=16, depth=2, heads=2, name="tiny_vit"):
    """A vision transformer (Dosovitskiy et al. 2021) of Keras' own layers.

    The positions are an embedding of the patches' numbers, which are counted from the input,
    because an embedding of constants would be a constant.
    """
    count = (side // patch) ** 2
    images = keras.Input([side, side, 3], dtype="float32")
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(x)
    x = layers.Reshape([count, width])(x)
    numbers = keras.ops.cumsum(keras.ops.ones_like(x[:, :, 0]), axis=1) - 1
    x = x + layers.Embedding(count, width, name="positions")(numbers)
    for index in range(depth):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.MultiHeadAttention(heads, width // heads, name=f"attention{index}")(y, y)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(2 * width, activation="gelu")(y)
        x = x + layers.Dense(width)(y)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return keras.Model(images, layers.GlobalAveragePooling1D()(x), name=name)
