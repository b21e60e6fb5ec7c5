"""Defaults that depend on the data: the number of pretraining epochs."""

from __future__ import annotations

import math

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
