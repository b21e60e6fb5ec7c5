"""Checks of image values: the models expect 0..255, and values in 0..1 give poor results."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf

REMEDY = "The models scale images themselves and expect values from 0 to 255: multiply by 255."
# A few hundred images are enough for the check, and quick to read from an array of any size.
_CHECKED_IMAGES = 256


def warn_if_scaled(images: np.ndarray | tf.Tensor) -> None:
    """Warns if all values of a batch are between -1 and 1 and not all of them are zero.

    Args:
        images: An array or an eager tensor [B, ...] of any type.
    """
    some = np.asarray(images[:_CHECKED_IMAGES])
    if _looks_scaled(some):
        warnings.warn(
            f"These images have values from {some.min():g} to {some.max():g}. {REMEDY}",
            stacklevel=3,
        )


def check_input(x: Any) -> Any:
    """Returns the input of `fit`, `evaluate` or `predict`, and warns about images in 0..1.

    An array is checked immediately. Float batches of a dataset are checked as they are read.
    """
    if isinstance(x, tf.data.Dataset):
        return _check_batches(x)
    if hasattr(x, "shape") and len(x.shape):
        warn_if_scaled(x)
    return x


def as_uint8_images(images: np.ndarray) -> np.ndarray:
    """Converts images in memory to uint8 [M, H, W, 3]; grayscale becomes three equal channels.

    Args:
        images: uint8 [M, H, W, 3], [M, H, W, 1] or [M, H, W], in 0..255.

    Raises:
        ValueError: If the images have another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        convert = "images.astype('uint8')"
        if images.size and _looks_scaled(images):
            convert = "(255 * images).round().astype('uint8')"
        values = f" with values from {images.min()} to {images.max()}" if images.size else ""
        raise ValueError(
            f"Expected images of type uint8 in 0..255, got {images.dtype}{values}: pass {convert}."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            "Expected images of shape [M, H, W, 3], or grayscale images of shape [M, H, W], got "
            f"{images.shape}."
        )
    warn_if_scaled(images)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def check_examples(dataset: tf.data.Dataset) -> None:
    """Raises ValueError unless the elements are (image uint8 [H, W, 3], label)."""
    spec = dataset.element_spec
    is_pair = isinstance(spec, tuple) and len(spec) == 2
    if not is_pair or spec[0].dtype != tf.uint8 or spec[0].shape.rank not in (3, None):
        raise ValueError(
            "Expected an unbatched dataset of (image, label) with images uint8 [H, W, 3] in "
            f"0..255, got {spec}."
        )


def _looks_scaled(images):
    if images.size == 0 or images.max() > 1 or images.min() < -1:
        return False
    return bool(np.any(images))


def _check_batches(dataset):
    """Adds the check to the dataset. It runs on the host, so it does not affect the model."""
    spec = dataset.element_spec
    images = spec[0] if isinstance(spec, tuple) else spec
    if isinstance(images, dict):
        images = images.get("image")
    if not (isinstance(images, tf.TensorSpec) and images.dtype.is_floating):
        return dataset

    @tf.autograph.experimental.do_not_convert
    def check(*parts):
        images = parts[0]["image"] if isinstance(parts[0], dict) else parts[0]
        largest = tf.reduce_max(tf.abs(images))
        tf.cond(
            (largest > 0) & (largest <= 1),
            lambda: tf.py_function(lambda batch: warn_if_scaled(batch.numpy()), [images], []),
            lambda: tf.no_op(),
        )
        return parts if isinstance(spec, tuple) else parts[0]

    return dataset.map(check)
