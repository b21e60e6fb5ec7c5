"""Whether an accuracy is one that a classifier reaches without looking at the images.

An accuracy is at chance unless it is above the share of the most frequent test class, which
always answering that class reaches, by more than two standard errors of that share.
"""

from __future__ import annotations

import math

import numpy as np

ADVICE = (
    "Look at images and labels with --mode=preview; then try more --pretrain_epochs, a lower "
    "--pretrain_base_learning_rate, or weaker augmentation (--augmentation_magnitude)."
)


def of_labels(labels: np.ndarray) -> dict:
    """What the rule needs of the test labels, int [M], for a stage's result."""
    count = len(labels)
    return {"majority_class_share": float(np.bincount(labels).max() / count), "num_labels": count}


def limit(majority_class_share: float, num_labels: int) -> float:
    """The largest accuracy that counts as chance."""
    share = majority_class_share
    return share + 2 * math.sqrt(share * (1 - share) / num_labels)


def chance_warning(results: dict[str, dict]) -> list[str]:
    """Closing lines about the last stage with an accuracy, if that is at chance."""
    for stage, name in (
        ("eval", "top_1"),
        ("finetune", "top_1"),
        ("linear", "top_1"),
        ("pretrain", "knn_accuracy"),
    ):
        result = results.get(stage, {})
        if {name, "majority_class_share", "num_labels"} <= set(result):
            share, count = result["majority_class_share"], result["num_labels"]
            if result[name] > limit(share, count):
                return []
            what = "top-1" if name == "top_1" else "k-NN accuracy"
            return [
                "",
                f"AT CHANCE LEVEL: {what} {result[name]:.4f} of {stage} is not above "
                f"{limit(share, count):.4f}, which is what always answering the most frequent of "
                f"the test classes reaches on {count:,} images ({share:.4f}) plus two standard "
                f"errors. {ADVICE}",
                "",
            ]
    return []
