"""Networks of keras.applications as encoders, untrained or with the weights of ImageNet."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback
import warnings
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from supcon_tf.models import batch_norm

PREFIX = "keras.applications."
DOWNLOAD_TIMEOUT_SECONDS = 60.0


def create_application(
    architecture: str,
    *,
    image_size: int,
    weights: str | None = None,
    use_global_batch_norm: bool = True,
    **options: Any,
) -> keras.Model:
    """Creates a network of keras.applications: float32 [B, S, S, 3] in 0..255 -> float32 [B, F].

    The network's own `preprocess_input` is part of the model, built from stock layers and
    operations, so a saved encoder loads with Keras alone.

    Args:
        architecture: For example "keras.applications.EfficientNetV2B0"
            (https://keras.io/api/applications/).
        image_size: S in pixels.
        weights: None, or "imagenet" for the weights that Keras downloads to
            ~/.keras/models (or $KERAS_HOME/models). A file that is there already is used.
        use_global_batch_norm: Compute batch statistics over all replicas, not per replica.
        **options: Further arguments of the network, such as alpha=0.5. Defaults:
            include_top=False, pooling="avg".

    Raises:
        ValueError: The network is unknown, the images are too small for it, or its weights are
            neither on this machine nor can be downloaded.
    """
    create = _constructor(architecture)
    shape = [image_size, image_size, 3]
    options = {"include_top": False, "pooling": "avg", **options}
    try:
        with _limited_waiting(), warnings.catch_warnings():
            # Keras warns that some weights were trained on another image size, which is intended.
            warnings.filterwarnings("ignore", "`input_shape` is undefined or non-square")
            network = create(input_shape=tuple(shape), weights=weights, **options)
    except Exception as error:  # Keras raises a bare Exception if a download fails.
        download = _failed_download(error)
        if download is None and not isinstance(error, ValueError):
            raise
        raise ValueError(
            _how_to_download(architecture, error, download)
            if download
            else f"{architecture} cannot be built for image_size={image_size}: {error}"
        ) from error
    batch_norm.use_global_batch_norm(network, use_global_batch_norm)
    images = keras.Input(shape, dtype="float32", name="image")
    x = preprocess(architecture, images)
    features = layers.Activation("linear", dtype="float32", name="features")(network(x))
    return keras.Model(images, features, name=network.name)


def preprocess(architecture: str, images: tf.Tensor) -> tf.Tensor:
    """Prepares images float32 [B, S, S, 3] in 0..255 as a network of keras.applications expects.

    For some networks this is the identity: their first layers expect 0..255.
    """
    return sys.modules[_constructor(architecture).__module__].preprocess_input(images)


@contextlib.contextmanager
def _limited_waiting():
    """Lets a download fail if the server does not answer, which Keras would wait for forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _failed_download(error):
    """The arguments of Keras' `get_file` if the error comes from it, else None."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        values = frame.f_locals
        if frame.f_code.co_name == "get_file" and {"origin", "download_target"} <= values.keys():
            return values["origin"], str(values["download_target"])
    return None


def _how_to_download(architecture, error, download):
    url, path = download
    return (
        f"The ImageNet weights of {architecture} are not on this machine, and their download "
        f"failed ({error}). Keras wants the file {os.path.basename(path)} in the folder "
        f"{os.path.dirname(path)} (models/ in $KERAS_HOME, by default ~/.keras). On a machine with "
        f"internet, download it and copy it there:\n    curl -L -o {os.path.basename(path)} {url}\n"
        "If a file of that name is there already, its checksum is not the one that Keras expects: "
        "download it again. Or start without these weights, by leaving out "
        "--encoder_weights=imagenet."
    )


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
