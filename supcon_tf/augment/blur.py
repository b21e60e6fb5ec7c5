"""Gaussian blur of float images, one sigma per image: the training step runs it on the device."""

from __future__ import annotations

import tensorflow as tf

BLUR_DRAWS = 2
SIGMA_RANGE = (0.1, 2.0)


def random_blur(images: tf.Tensor, draws: tf.Tensor, *, probability: float = 0.5) -> tf.Tensor:
    """Blurs each image with that probability, sigma uniform in SIGMA_RANGE pixels.

    As SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709, appendix A); the released
    SupCon code draws one sigma for all images of a device, this one for each.

    Args:
        images: float32 [n, S, S, 3].
        draws: float32 [n, BLUR_DRAWS] in [0, 1): whether, and sigma.
        probability: the recipes for ImageNet have 0.5, those for CIFAR-10 0.

    Returns:
        float32 [n, S, S, 3].
    """
    low, high = SIGMA_RANGE
    blurred = gaussian_blur(images, low + draws[:, 1] * (high - low))
    return tf.where((draws[:, 0] < probability)[:, None, None, None], blurred, images)


def gaussian_blur(images: tf.Tensor, sigmas: tf.Tensor) -> tf.Tensor:
    """Separable Gaussian of 2 (S // 10 // 2) + 1 taps, zeros outside the image.

    Each direction is one product with a banded [S, S] matrix per image: the shape that
    accelerators are fast at, where a convolution with one kernel per image is not.

    Args:
        images: float32 [n, S, S, 3].
        sigmas: float32 [n], in pixels, above 0.
    """
    size = images.shape[1]
    radius = size // 10 // 2
    offset = tf.range(-radius, radius + 1, dtype=tf.float32)
    distance = tf.range(size)[:, None] - tf.range(size)  # [S, S]
    variance = 2.0 * tf.cast(sigmas, tf.float32)[:, None] ** 2  # [n, 1]
    total = tf.reduce_sum(tf.exp(-(offset**2) / variance), axis=1)[:, None, None]
    squares = tf.cast(distance, tf.float32)[None] ** 2 / variance[:, :, None]
    band = tf.where(tf.abs(distance) <= radius, tf.exp(-squares) / total, 0.0)  # [n, S, S]
    rows = tf.einsum("nij,njwc->niwc", band, images)
    return tf.einsum("nij,nhjc->nhic", band, rows)


def blurred_images(batch) -> tf.Tensor:
    """The views of a batch as float32 [B, V, S, S, 3] in 0..255, with the blur that was drawn.

    Args:
        batch: {"image": [B, V, S, S, 3]}, with "blur_sigma" [B, V] in pixels if some views are to
            be blurred; 0 leaves a view as it is.

    Outside the image lies grey, which is 0 in [-1, 1], where the reference blurs.
    """
    images = tf.cast(batch["image"], tf.float32)
    if "blur_sigma" not in batch:
        return images
    flat = tf.reshape(images, [-1, *images.shape[2:]])  # [B * V, S, S, 3]
    sigmas = tf.reshape(batch["blur_sigma"], [-1])
    blurred = gaussian_blur(flat - 127.5, tf.maximum(sigmas, SIGMA_RANGE[0])) + 127.5
    chosen = tf.where((sigmas > 0)[:, None, None, None], blurred, flat)
    return tf.reshape(chosen, tf.shape(images))
