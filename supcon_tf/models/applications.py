"""Networks of keras.applications as encoders, without pretrained weights."""

from __future__ import annotations

import sys

import keras
from keras import layers

PREFIX = "keras.applications."


def create_application(
    architecture: str, *, image_size: int, use_global_batch_norm: bool = True, **options
) -> keras.Model:
    """Creates a network of keras.applications: float32 [B, S, S, 3] in 0..255 -> float32 [B, F].

    The network's own `preprocess_input` is part of the model, built from stock layers and
    operations, so a saved encoder loads with Keras alone.

    Args:
        architecture: For example "keras.applications.EfficientNetV2B0"
            (https://keras.io/api/applications/).
        image_size: S in pixels.
        use_global_batch_norm: Compute batch statistics over all replicas, not per replica.
        **options: Further arguments of the network, such as alpha=0.5. Defaults:
            weights=None, include_top=False, pooling="avg".

    Raises:
        ValueError: The network is unknown, or the images are too small for it.
    """
    create = _constructor(architecture)
    shape = [image_size, image_size, 3]
    options = {"weights": None, "include_top": False, "pooling": "avg", **options}
    try:
        network = create(input_shape=tuple(shape), **options)
    except ValueError as error:
        raise ValueError(
            f"{architecture} cannot be built for image_size={image_size}: {error}"
        ) from error
    if use_global_batch_norm:
        for layer in network.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.synchronized = True  # Read at every call, and saved with the layer.
    images = keras.Input(shape, dtype="float32", name="image")
    # For some networks this is the identity: their first layers expect 0..255.
    x = sys.modules[create.__module__].preprocess_input(images)
    features = layers.Activation("linear", dtype="float32", name="features")(network(x))
    return keras.Model(images, features, name=network.name)


def names() -> list[str]:
    """Names of all networks that `create_application` supports."""
    found = (name for name in dir(keras.applications) if name[0].isupper())
    return [PREFIX + name for name in found if callable(getattr(keras.applications, name))]


def _constructor(architecture):
    if architecture not in names():
        raise ValueError(
            f"Unknown encoder {architecture!r}: choose one of "
            + ", ".join(name.removeprefix(PREFIX) for name in names())
            + f", each with {PREFIX} before it."
        )
    return getattr(keras.applications, architecture.removeprefix(PREFIX))
