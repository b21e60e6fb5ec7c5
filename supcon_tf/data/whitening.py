"""Mean and deviation of a dataset's images, per channel, for an encoder that whitens."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# Images that are nearly of one colour must not become noise.
SMALLEST_STD = 0.01


def measure_whitening(
    batches: tf.data.Dataset,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of all pixels, of images scaled to [-1, 1].

    Args:
        batches: as `pipeline.create_eval_batches` gives them.

    Returns:
        Three means and three deviations, rounded to four digits.
    """
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for batch in batches:
        images = batch["image"].numpy()[batch["index"].numpy() >= 0] / 127.5 - 1.0  # [B, S, S, 3]
        pixels = images.reshape(-1, 3)
        count += len(pixels)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, SMALLEST_STD**2))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(std, 4).tolist())
