"""Defaults of training, and those that depend on the data: batch size, epochs, image size."""

from __future__ import annotations

import math
from collections.abc import Sequence

BATCH_SIZE = 64
# Share of an image that a random crop of pretraining covers.
CROP_AREA_RANGE = (0.5, 1.0)
# Whitening constants are measured on at most this number of training images, spread evenly.
WHITENING_EXAMPLES = 2_000
# The largest side in pixels that is chosen for the user, by encoder; and the smallest.
LARGEST_TINY_PX, LARGEST_PX, SMALLEST_PX = 32, 224, 8
# Enough for the embedded digits: 673 steps at batch size 64.
EPOCHS = 30
DIGITS = "digits"
# 2,000 photographs of ten classes at batch size 64: k-NN reaches 40% of 2,000 test images after 937
# steps, and 48% after 2,000.
MIN_STEPS = 2_000
# Prevents that each image of a very small folder is repeated thousands of times.
MAX_EPOCHS = 240


def pretrain_epochs(dataset: str, num_examples: int, batch_size: int) -> int:
    """The default number of pretraining epochs.

    It is `EPOCHS` for the digits. Other datasets are trained for at least `MIN_STEPS` steps, but
    for at most `MAX_EPOCHS` epochs.

    Args:
        dataset: the value of --dataset.
        num_examples: training examples in one epoch.
        batch_size: examples per step.
    """
    if dataset == DIGITS:
        return EPOCHS
    epochs = math.ceil(MIN_STEPS * batch_size / num_examples)
    return min(max(epochs, EPOCHS), MAX_EPOCHS)


def describe_pretrain_epochs(batch_size: int = 64) -> str:
    """Describes the rule with a small table, for the help of --pretrain_epochs."""
    table = ", ".join(
        f"{count:,} images {pretrain_epochs('folder', count, batch_size)}"
        for count in (500, 1_000, 2_000, 4_000, 50_000)
    )
    return (
        f"{EPOCHS} for the digits; for other data {EPOCHS}, or as many as it takes to reach "
        f"{MIN_STEPS:,} steps, up to {MAX_EPOCHS}. At batch size {batch_size}: {table}."
    )


def batch_size(num_examples: int, num_replicas: int = 1) -> int:
    """Returns `BATCH_SIZE`, or for fewer examples the most that the replicas share evenly.

    Where every replica could not get two examples it is `BATCH_SIZE`, which is then refused.
    """
    smaller = num_examples // num_replicas * num_replicas
    return BATCH_SIZE if smaller < 2 * num_replicas else min(BATCH_SIZE, smaller)


def image_size(shape: Sequence[int], encoder: str) -> int:
    """Returns the side at which an encoder sees images of this height and width, in pixels."""
    largest = LARGEST_TINY_PX if encoder == "tiny" else LARGEST_PX
    return max(SMALLEST_PX, min(largest, *shape))
