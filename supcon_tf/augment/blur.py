"""The Gaussian blur at the end of SimCLR's augmentation: its draw, its kernel, its application.

The input pipeline draws a sigma for each view (`draw_sigmas`) and the training step blurs on the
device (`blurred_images`), as Chen et al. 2020 (https://arxiv.org/abs/2002.05709, appendix A) do.
The released SupCon code draws one sigma for all images of a device, this code one for each view.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

BLUR_DRAWS = 2
SIGMA_RANGE = (0.1, 2.0)


def draw_sigmas(draws: tf.Tensor, probability: float) -> tf.Tensor:
    """Draws which views are blurred, and how much.

    Args:
        draws: float32 [..., BLUR_DRAWS] in [0, 1).
        probability: share of views to blur: 0.5 in the recipes for ImageNet, 0 for CIFAR-10.

    Returns:
        float32 [...]: sigma in pixels, uniform in SIGMA_RANGE, or 0 for views without blur.
    """
    low, high = SIGMA_RANGE
    sigma = low + draws[..., 1] * (high - low)
    return tf.where(draws[..., 0] < probability, sigma, 0.0)


def gaussian_blur(images: tf.Tensor, sigmas: tf.Tensor) -> tf.Tensor:
    """Applies a separable Gaussian of 2 (S // 10 // 2) + 1 taps, with zeros outside the image.

    Each direction is one product with a banded [S, S] matrix per image, which is fast on
    accelerators. A convolution with another kernel for each image is not.

    Args:
        images: float32 [n, S, S, 3].
        sigmas: float32 [n], in pixels, above 0.

    Returns:
        float32 [n, S, S, 3].
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


def blurred_images(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Blurs the views of a training batch with the sigmas that were drawn for them.

    Outside the image lies gray (0 in [-1, 1]), as in the released code.

    Args:
        batch: contains "image" [B, V, S, S, 3] and, if some views are to be blurred,
            "blur_sigma" [B, V] in pixels, where 0 leaves a view unchanged.

    Returns:
        float32 [B, V, S, S, 3] in 0..255.
    """
    images = tf.cast(batch["image"], tf.float32)
    if "blur_sigma" not in batch:
        return images
    flat = tf.reshape(images, [-1, *images.shape[2:]])  # [B * V, S, S, 3]
    sigmas = tf.reshape(batch["blur_sigma"], [-1])
    blurred = gaussian_blur(flat - 127.5, tf.maximum(sigmas, SIGMA_RANGE[0])) + 127.5
    chosen = tf.where((sigmas > 0)[:, None, None, None], blurred, flat)
    return tf.reshape(chosen, tf.shape(images))
