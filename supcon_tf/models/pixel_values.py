"""Checks of image values: every model here takes 0..255, and 0..1 trains or predicts badly."""

from __future__ import annotations

import warnings

import numpy as np
import tensorflow as tf

REMEDY = "The models scale images themselves and expect values from 0 to 255: multiply by 255."
# Looking at some hundred images is enough, and quick for any array.
_CHECKED_IMAGES = 256


def warn_if_scaled(images) -> None:
    """Warns if no value of a whole batch exceeds 1 and not all are zero.

    Args:
        images: an array or an eager tensor [B, ...] of any type.
    """
    some = np.asarray(images[:_CHECKED_IMAGES])
    if _looks_scaled(some):
        warnings.warn(
            f"These images have values from {some.min():g} to {some.max():g}. {REMEDY}",
            stacklevel=3,
        )


def check_input(x):
    """What `fit`, `evaluate` and `predict` take, with a warning for images in 0..1.

    An array is looked at now; batches of floats in a dataset are looked at as they come.
    """
    if isinstance(x, tf.data.Dataset):
        return _check_batches(x)
    if hasattr(x, "shape") and len(x.shape):
        warn_if_scaled(x)
    return x


def as_uint8_images(images) -> np.ndarray:
    """Images in memory as uint8 [M, H, W, 3]; grey ones get three equal channels.

    Args:
        images: uint8 [M, H, W, 3], [M, H, W, 1] or [M, H, W], in 0..255.

    Raises:
        ValueError: another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        convert = "images.astype('uint8')"
        if images.size and _looks_scaled(images):
            convert = "(255 * images).round().astype('uint8')"
        values = f" with values from {images.min()} to {images.max()}" if images.size else ""
        raise ValueError(
            f"Expected images uint8 in 0..255, got {images.dtype}{values}: pass {convert}."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"Expected images [M, H, W, 3], or grey ones [M, H, W], got the shape {images.shape}."
        )
    warn_if_scaled(images)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def check_examples(dataset: tf.data.Dataset) -> None:
    """Raises ValueError unless the elements are (image uint8 [H, W, 3], label)."""
    spec = dataset.element_spec
    is_pair = isinstance(spec, tuple) and len(spec) == 2
    if not is_pair or spec[0].dtype != tf.uint8 or spec[0].shape.rank not in (3, None):
        raise ValueError(
            "Expected a dataset of examples (image, label) with images uint8 [H, W, 3] in 0..255, "
            f"not yet batched; got {spec}."
        )


def _looks_scaled(images):
    if images.size == 0 or images.max() > 1 or images.min() < -1:
        return False
    return bool(np.any(images))


def _check_batches(dataset):
    """The same dataset; the check runs on the host, so that compiled models are not affected."""
    spec = dataset.element_spec
    images = spec[0] if isinstance(spec, tuple) else spec
    if isinstance(images, dict):
        images = images.get("image")
    if not (isinstance(images, tf.TensorSpec) and images.dtype.is_floating):
        return dataset

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
