"""Figures for images with several labels, and for real-valued targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from supcon_tf.evaluation import metrics, retrieval


def multi_label_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    threshold: float = 0.5,
    from_logits: bool = False,
    class_names: Sequence[str] | None = None,
) -> dict:
    """Average precision and F1 of a classifier with one sigmoid per class.

    Args:
        scores: [N, C], probabilities or, with `from_logits`, the values before the sigmoid.
        labels: bool or multi-hot [N, C].
        threshold: a class is predicted from this probability on; used by F1 alone.
        class_names: of the C classes; by default "0", "1", ...

    Returns:
        average_precision: class name to average precision; a class without a positive example
            has none and is left out.
        mean_average_precision: their mean.
        macro_f1: mean F1 of the same classes.
        micro_f1: F1 of all N x C decisions together.
        classes_without_positives: the names of the classes that were left out.
        threshold, num_examples.

    Raises:
        ValueError: shapes that do not fit, scores that are not finite, or no positive at all.
    """
    from sklearn.metrics import average_precision_score, f1_score

    scores, labels = np.asarray(scores), np.asarray(labels) > 0
    names = list(map(str, range(labels.shape[-1]))) if class_names is None else list(class_names)
    _check(scores, labels, names)
    occurs = np.flatnonzero(labels.any(axis=0))
    # Of the scores as they are: a sigmoid rounds large logits to ties.
    precisions = [average_precision_score(labels[:, c], scores[:, c]) for c in occurs]
    predicted = scores >= (_logit(threshold) if from_logits else threshold)
    macro = f1_score(labels[:, occurs], predicted[:, occurs], average="macro", zero_division=0)
    micro = f1_score(labels, predicted, average="micro", zero_division=0)
    present = {names[c] for c in occurs}
    return {
        "mean_average_precision": float(np.mean(precisions)),
        "average_precision": {names[c]: float(x) for c, x in zip(occurs, precisions, strict=True)},
        "micro_f1": float(micro),
        "macro_f1": float(macro),
        "threshold": float(threshold),
        "classes_without_positives": [name for name in names if name not in present],
        "num_examples": len(labels),
    }


def _check(scores, labels, names):
    if labels.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"Expected scores and multi-hot labels of one shape [N, C], got {list(scores.shape)} "
            f"and {list(labels.shape)}."
        )
    if len(set(names)) != labels.shape[1]:
        raise ValueError(
            f"Expected {labels.shape[1]} different class names, got {len(names)}, of which "
            f"{len(set(names))} differ."
        )
    if broken := np.count_nonzero(~np.isfinite(scores).all(axis=1)):
        raise ValueError(
            f"The scores of {broken:,} of {len(labels):,} examples are not finite: the classifier "
            "is broken; train it again with a lower learning rate."
        )
    if not labels.any():
        raise ValueError("No label is set: average precision needs at least one positive example.")


def _logit(probability):
    if not 0 < probability < 1:
        raise ValueError(f"Expected a threshold between 0 and 1, got {probability}.")
    return np.log(probability / (1 - probability))


def regression_metrics(predictions: np.ndarray, targets: np.ndarray) -> dict:
    """Figures of predicted real numbers, from scikit-learn.

    Args:
        predictions, targets: [N], or [N, T] for T targets per example, which are averaged.

    Returns:
        mean_absolute_error, in the unit of the targets; r2, the share of the targets' variance
        that is explained (1 is perfect, 0 what their mean achieves); num_examples.

    Raises:
        ValueError: fewer than two examples, or a target that is the same for all: R2 is undefined.
    """
    from sklearn.metrics import mean_absolute_error, r2_score

    targets = np.asarray(targets, np.float64)
    if len(targets) < 2 or np.any(np.ptp(targets, axis=0) == 0):
        raise ValueError(
            f"R2 needs targets that differ between at least two examples; got {len(targets):,} "
            "examples of one value."
        )
    return {
        "mean_absolute_error": float(mean_absolute_error(targets, predictions)),
        "r2": float(r2_score(targets, predictions)),
        "num_examples": len(targets),
    }


def knn_regression(
    train_embeddings: np.ndarray,
    train_targets: np.ndarray,
    embeddings: np.ndarray,
    *,
    num_neighbors: int = 20,
    temperature: float = 0.07,
) -> np.ndarray:
    """Predicts real targets by the weighted mean of the nearest training examples.

    The weights are those of `metrics.knn_accuracy`, exp(cosine / temperature).

    Args:
        train_embeddings: [M, D] of any norm.
        train_targets: [M] or [M, T].
        embeddings: [N, D] of any norm.
        num_neighbors: at most M are used.

    Returns:
        float64 [N] or [N, T].
    """
    targets = np.asarray(train_targets, np.float64)
    k = min(num_neighbors, len(targets))
    indices, similarities = retrieval.nearest(embeddings, train_embeddings, k)
    return retrieval.neighbor_vote(similarities, targets[indices], temperature=temperature)


def knn_figure(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    embeddings: np.ndarray,
    labels: np.ndarray,
) -> dict[str, float]:
    """Returns knn_accuracy; for multi-hot labels knn_mean_average_precision, of the votes.

    For real targets, returns knn_mean_absolute_error and knn_r2.

    Args:
        train_embeddings: [M, D] of any norm.
        train_labels: int [M], multi-hot [M, C], or float [M] for real targets.
        embeddings: [N, D] of any norm.
        labels: int [N], multi-hot [N, C], or float [N].
    """
    if np.asarray(labels).dtype.kind == "f":
        predicted = knn_regression(train_embeddings, train_labels, embeddings)
        found = regression_metrics(predicted, labels)
        return {f"knn_{name}": found[name] for name in ("mean_absolute_error", "r2")}
    if np.ndim(labels) == 2:
        votes = knn_regression(train_embeddings, train_labels, embeddings)
        return {"knn_mean_average_precision": metrics.mean_average_precision(votes, labels)}
    accuracy = metrics.knn_accuracy(train_embeddings, train_labels, embeddings, labels)
    return {"knn_accuracy": accuracy}
