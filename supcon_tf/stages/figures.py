"""The main figures of a classifier or regression, by the type of the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from supcon_tf.evaluation import metrics, multi_label
from supcon_tf.stages import chance


def of_classifier(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict:
    """Returns the figures that a stage that trains a classifier reports.

    Args:
        logits: [M, C]; of a regression the predicted numbers, [M, 1].
        labels: int [M], bool [M, C] for several labels per image, or float [M] for real targets.
        class_names: The names of the C classes.
    """
    if is_real(labels):
        return multi_label.regression_metrics(logits[:, 0], labels)
    if labels.ndim == 1:
        return {"top_1": metrics.top_k_accuracy(logits, labels), **chance.of_labels(labels)}
    return multi_label.multi_label_metrics(
        logits, labels, from_logits=True, class_names=class_names
    )


def is_real(labels: np.ndarray) -> bool:
    """Returns whether labels are real targets, not classes."""
    return labels.dtype.kind == "f"


def describe_classifier(figures: dict) -> str:
    """Returns top-1 and, if there are more than five classes, top-5; or mAP and F1; or MAE, R2."""
    if "r2" in figures:
        return f"mean absolute error {figures['mean_absolute_error']:.4g}, R2 {figures['r2']:.4f}"
    if "mean_average_precision" in figures:
        text = f"mAP {figures['mean_average_precision']:.4f}"
        if "micro_f1" in figures:
            text += f", F1 {figures['micro_f1']:.4f} micro, {figures['macro_f1']:.4f} macro"
        return text
    top_5 = f", top-5 {figures['top_5']:.4f}" if "top_5" in figures else ""
    return f"top-1 {figures['top_1']:.4f}{top_5}"
