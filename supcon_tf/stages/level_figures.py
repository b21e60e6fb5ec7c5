"""The accuracy at each level of a hierarchy, of a classifier of its finest level."""

from __future__ import annotations

import numpy as np

from supcon_tf.data.image_files import FileSource
from supcon_tf.evaluation.intervals import wilson_interval


def of_levels(
    probabilities: np.ndarray,
    labels: np.ndarray,
    numbers: np.ndarray,
    source: FileSource,
    columns: list[str],
) -> list[dict]:
    """Returns the accuracy at each level but the finest, from coarse to fine.

    The probability of a class is the sum of those of the finest classes in it, and the prediction
    is the most probable class.

    Args:
        probabilities: [M, C] of the classifier's C classes.
        labels: int [M], numbers of the classifier's classes.
        numbers: The classifier's number of each finest class of the source.
        source: The evaluated images, with the `level_names` and `parents` of a hierarchy.
        columns: The names of the levels.

    Returns:
        For each level its name, num_classes, accuracy and interval_95 (Wilson).
    """
    found = []
    for name, classes, parents in zip(columns, source.level_names, source.parents, strict=False):
        # Classes of the classifier that the hierarchy does not have share one more class.
        parent = np.full(probabilities.shape[1], len(classes))
        parent[numbers] = parents
        coarse = probabilities @ np.eye(len(classes) + 1)[parent]
        hits = int(np.sum(coarse.argmax(axis=1) == parent[labels]))
        found.append(
            {
                "level": name,
                "num_classes": len(classes),
                "accuracy": hits / len(labels),
                "interval_95": wilson_interval(hits, len(labels)),
            }
        )
    return found


def describe_levels(levels: list[dict]) -> str:
    """Returns the line of the closing text of eval."""
    parts = []
    for level in levels:
        low, high = level["interval_95"]
        parts.append(f"{level['level']} {level['accuracy']:.4f} [{low:.4f}, {high:.4f}]")
    return f"  coarser levels   accuracy {', '.join(parts)}"
