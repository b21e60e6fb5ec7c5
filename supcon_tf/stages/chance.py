"""Whether an accuracy is no better than chance.

Always predicting the most frequent test class reaches an accuracy equal to the share of that class.
An accuracy is at chance unless it exceeds this share by more than two of its standard errors.
"""

from __future__ import annotations

import math

import numpy as np

ADVICE = (
    "Check images and labels with --mode=preview. Then try more --pretrain_epochs, a lower "
    "--pretrain_base_learning_rate, or weaker augmentation (--augmentation_magnitude)."
)


def of_labels(labels: np.ndarray) -> dict:
    """Returns the figures of test labels, int [M], that `limit` needs, for a stage's result."""
    count = len(labels)
    return {"majority_class_share": float(np.bincount(labels).max() / count), "num_labels": count}


def limit(majority_class_share: float, num_labels: int) -> float:
    """Returns the largest accuracy that counts as chance."""
    share = majority_class_share
    return share + 2 * math.sqrt(share * (1 - share) / num_labels)


def chance_warning(results: dict[str, dict]) -> list[str]:
    """Returns closing lines if the last accuracy among the results is at chance, else []."""
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
            what = "top-1 accuracy" if name == "top_1" else "k-NN accuracy"
            return [
                "",
                f"AT CHANCE LEVEL: the {what} of {stage}, {result[name]:.4f}, is no better than "
                f"always predicting the most frequent test class, which reaches {share:.4f} on "
                f"{count:,} images ({limit(share, count):.4f} with two standard errors). {ADVICE}",
                "",
            ]
    return []
