"""Whitening constants: mean and standard deviation per channel of images scaled to [-1, 1].

They are known for some datasets, measured for image folders, or given by the user. The encoder
applies them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Three means or standard deviations, one per channel.
PerChannel = tuple[float, ...]

# From preprocessing.py of the released code, as 2 m - 1 and 2 s of the usual constants in [0, 1].
CIFAR10_MEAN, CIFAR10_STD = (-0.0172, -0.0356, -0.107), (0.4046, 0.3988, 0.402)
CIFAR100_MEAN, CIFAR100_STD = (0.0142, -0.0266, -0.1184), (0.535, 0.513, 0.5522)
# The constants of torchvision's models, for converted weights; no dataset uses them by default.
IMAGENET_MEAN, IMAGENET_STD = (-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)
KNOWN = {
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "cifar100": (CIFAR100_MEAN, CIFAR100_STD),
}
# A lower bound, so that images of nearly one color are not amplified to noise.
SMALLEST_STD = 0.01


def choose_whitening(
    dataset: str, measure: Callable[[], tuple[PerChannel, PerChannel]]
) -> tuple[PerChannel, PerChannel] | tuple[None, None]:
    """The constants for a dataset: measured for image files, else the known ones.

    Args:
        dataset: "folder", "csv", or a dataset with TFDS's optional version or configuration.
        measure: returns the mean and standard deviation; called only for "folder" and "csv".

    Returns:
        Mean and standard deviation, or (None, None) for a dataset without known constants,
        whose images are not whitened.
    """
    if dataset in ("folder", "csv"):
        return measure()
    return KNOWN.get(dataset.split(":")[0].split("/")[0], (None, None))


def measure_whitening(batches: tf.data.Dataset) -> tuple[PerChannel, PerChannel]:
    """Measures mean and standard deviation over all pixels of some batches.

    Args:
        batches: evaluation batches; rows with index -1 are ignored.

    Returns:
        Three means and three standard deviations, rounded to four digits.
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
